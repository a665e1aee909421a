"""Inputs of one size share a batch, so that none is padded; outputs come in the order of the inputs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

BATCHES_AHEAD = 4  # for how many batches an input may wait for others of its size

Output = TypeVar("Output")


def run_in_batches(
    inputs: Iterable[dict[str, Any]], run: Callable[[list[dict[str, Any]]], Sequence[Output]], batch_size: int
) -> Iterator[Output]:
    """Yields the output of each input, while they are read. At most ``BATCHES_AHEAD`` batches are kept in memory.

    inputs: dicts with ``image`` (C, H, W); an iterator of any length
    run: a batch of inputs of one size, up to ``batch_size`` -> their outputs
    """
    waiting: dict[tuple[int, ...], list[tuple[int, dict[str, Any]]]] = {}  # oldest first, by the images' size
    done: dict[int, Output] = {}
    due = 0  # the input whose output is to be yielded next

    def run_group(group: list[tuple[int, dict[str, Any]]]) -> None:
        outputs = run([x for _, x in group])
        done.update(zip((index for index, _ in group), outputs, strict=True))

    for index, x in enumerate(inputs):
        size = tuple(x["image"].shape)
        waiting.setdefault(size, []).append((index, x))
        if len(waiting[size]) == batch_size:
            run_group(waiting.pop(size))
        elif index - due + 1 >= BATCHES_AHEAD * batch_size:
            run_group(waiting.pop(next(iter(waiting))))
        while due in done:
            yield done.pop(due)
            due += 1
    for group in waiting.values():
        run_group(group)
    for due in sorted(done):
        yield done[due]
