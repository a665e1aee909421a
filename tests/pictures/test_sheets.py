"""Sheets of pictures."""

import numpy as np
import pytest

from detr.engine.defaults import load_config
from detr.pictures.sheets import GAP, sheet, targets_sheet
from tests.conftest import QUICKSTART


def _picture(height, width, value):
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_rows_have_their_own_height_and_columns_the_largest_width():
    drawn = sheet([_picture(10, 20, 1), _picture(30, 40, 2), _picture(5, 10, 3)], columns=2)
    assert drawn.shape == (30 + GAP + 5, 40 + GAP + 40, 3)
    assert (drawn[:10, :20] == 1).all()
    assert (drawn[:30, 40 + GAP :] == 2).all()
    assert (drawn[30 + GAP :, :10] == 3).all()
    assert (drawn[30 : 30 + GAP] == 255).all()
    counts = [int((drawn == value).all(-1).sum()) for value in (1, 2, 3)]
    assert counts == [200, 1200, 50]


@pytest.mark.parametrize("flip", ["none", "horizontal"])
def test_the_sheet_of_targets_is_drawn_after_augmentation_and_leaves_the_random_numbers(flip, shapes_root):
    cfg = load_config(str(QUICKSTART), ["INPUT.RANDOM_FLIP", flip])
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    drawn = targets_sheet(cfg)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(3)
    assert np.array_equal(targets_sheet(cfg), drawn) == (flip == "none")
