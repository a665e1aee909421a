"""Boxes of every convention, declared as another: the table counts them, and the warning guesses which it is."""

import logging

import numpy as np
import pytest
from detectron2.structures import BoxMode

from detr.data.annotations import clean_dicts
from detr.data.statistics import box_statistics, log_table, segment_statistics, warn_of_unseen_classes
from tests.data.test_checks import entry

WIDTH, HEIGHT = 320, 200


def photos(convert, mode):
    """20 images with 5 objects of the size that objects have; convert: (x1, y1, x2, y2) -> what the file holds."""
    random = np.random.default_rng(0)
    dicts = []
    for index in range(20):
        sides = random.uniform(0.1, 0.6, (5, 2)) * [WIDTH, HEIGHT]
        corners = random.uniform(0, 1, (5, 2)) * ([WIDTH, HEIGHT] - sides)
        boxes = [convert(*corner, *(corner + side)) for corner, side in zip(corners, sides, strict=True)]
        objects = [{"bbox": list(map(float, box)), "bbox_mode": mode, "category_id": 0} for box in boxes]
        dicts.append({"file_name": f"{index}.jpg", "width": WIDTH, "height": HEIGHT, "annotations": objects})
    return clean_dicts(dicts)


def as_xyxy(x1, y1, x2, y2):
    return x1, y1, x2, y2


def as_xywh(x1, y1, x2, y2):
    return x1, y1, x2 - x1, y2 - y1


def as_center(x1, y1, x2, y2):
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def as_yxyx(x1, y1, x2, y2):
    return y1, x1, y2, x2


def as_fractions(x1, y1, x2, y2):
    return x1 / WIDTH, y1 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT


@pytest.mark.parametrize(
    ("convert", "mode", "guess"),
    [
        (as_xyxy, BoxMode.XYWH_ABS, "look like x1, y1, x2, y2, and are declared as x, y, width, height"),
        (as_xywh, BoxMode.XYXY_ABS, "look like x, y, width, height, and are declared as x1, y1, x2, y2"),
        (as_center, BoxMode.XYWH_ABS, "look like the center x, center y, width, height"),
        (as_yxyx, BoxMode.XYXY_ABS, "look as if x and y were exchanged"),
        (as_fractions, BoxMode.XYWH_ABS, "look like fractions of the image's width and height"),
        (lambda *box: as_xywh(*(3 * x for x in box)), BoxMode.XYWH_ABS, "are the images those that were annotated?"),
    ],
)
def test_another_convention_is_guessed(convert, mode, guess, caplog):
    caplog.set_level(logging.WARNING)
    box_statistics("mine", photos(convert, mode), ["cat"])
    (warning,) = [text for text in caplog.messages if "over the border" in text]
    assert warning.startswith("mine: ")
    assert guess in warning
    assert ".jpg of 320 x 200 pixels" in warning


@pytest.mark.parametrize(("convert", "mode"), [(as_xyxy, BoxMode.XYXY_ABS), (as_xywh, BoxMode.XYWH_ABS)])
def test_good_boxes_give_no_warning(convert, mode, caplog):
    caplog.set_level(logging.WARNING)
    row = box_statistics("mine", photos(convert, mode), ["cat"])
    assert not caplog.messages
    assert row == {
        "images": 20,
        "images without objects": 0,
        "objects": 100,
        "most objects in an image": 5,
        "crowds": 0,
        "boxes without area in the image, dropped": 0,
        "boxes over the border, clipped": 0,
        "boxes below a pixel": 0,
        "classes without objects": 0,
    }


def test_every_row_of_the_table(caplog):
    caplog.set_level(logging.INFO)
    odd = entry("b.jpg", [[0, 0, 5, 5], [30, 20, 10, 10], [1, 1, 0.5, 9], [5, 5, -2, 5], [50, 50, 5, 5], [0, 0, 9, 9]])
    odd["annotations"][-1]["iscrowd"] = 1
    dicts = clean_dicts([entry("a.jpg"), odd, entry("c.jpg", [[0, 0, 5, 5]], category=2)])
    row = box_statistics("mine", dicts, ["cat", "dog", "cow", "pig"])
    assert list(row.values()) == [3, 1, 4, 3, 1, 2, 2, 1, 2]
    dropped, border = caplog.messages
    assert dropped.startswith("mine: 2 of 7 boxes are dropped")
    assert "the first is in b.jpg" in dropped
    assert "4 of 6 boxes have no area, are below a pixel or reach over the border, the first [30.0, 20.0, 10" in border
    caplog.clear()
    log_table({"mine": row, "others": segment_statistics([{"segments_info": [{"category_id": 1}] * 2}], None)})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in caplog.messages[0].splitlines()[1:]]
    assert lines[0] == ["", "mine", "others"]
    assert ["objects", "4", "2"] in lines
    assert ["boxes below a pixel", "1", ""] in lines
    caplog.clear()
    warn_of_unseen_classes(dicts, ["cat", "dog", "cow", "pig"])
    assert caplog.messages == ["no object of 2 classes is in the training sets: dog, pig"]
