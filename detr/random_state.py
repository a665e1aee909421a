"""Random numbers that depend on what is computed, and not on what was computed before."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_random(*key: int) -> None:
    """Seeds torch (with all GPUs), numpy and random of this process from a key of numbers that are not negative.

    Similar keys give unrelated numbers. Waits for no GPU.
    """
    for_torch = _seed_cpu(key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(for_torch)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Inside, random numbers on the CPU are those of the key; afterwards they go on as if nothing had happened."""
    with preserved():
        _seed_cpu(key)
        yield


@contextmanager
def preserved() -> Iterator[None]:
    """Restores the states of torch (on the CPU), numpy and random."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def use_deterministic_operations() -> None:
    """Lets torch compute on a GPU in ways that give the same result each time, and warn where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)


def _seed_cpu(key: tuple[int, ...]) -> int:
    """Returns torch's seed."""
    # torch.manual_seed would, without a GPU, write down the stack of calls each time.
    # With the length of the key: to SeedSequence, zeros at the end are nothing.
    for_torch, for_random, *for_numpy = map(int, np.random.SeedSequence((len(key), *key)).generate_state(6))
    for_torch |= for_numpy.pop() << 32
    torch.default_generator.manual_seed(for_torch)
    random.seed(for_random)
    np.random.seed(for_numpy)
    return for_torch
