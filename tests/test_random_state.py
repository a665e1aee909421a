"""Seeds from keys."""

import random

import numpy as np
import torch

from detr.random_state import seed_random, seeded


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand((), dtype=torch.float64))


def test_keys_that_differ_in_one_number_give_unrelated_numbers():
    drawn = []
    keys = [(1, 0, 5), (1, 0, 6), (1, 1, 5), (0, 1, 5), (1, 0, 5 + (1 << 32)), (1,), (1, 0), (1, 0, 0)]
    for key in keys:
        seed_random(*key)
        drawn += draw()
    assert len(set(drawn)) == 3 * len(keys)
    seed_random(1, 0, 5)
    assert list(draw()) == drawn[:3]


def test_numbers_go_on_after_an_interlude():
    seed_random(7)
    draw()
    expected = draw()
    seed_random(7)
    draw()
    with seeded(3):
        inside = draw()
    assert draw() == expected
    seed_random(3)
    assert draw() == inside
