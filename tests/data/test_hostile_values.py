"""Values in data sets that would crash, hang or mislead what reads them later."""

import logging
import os

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from detr.data.annotations import clean_image
from detr.data.coco_file import read_json
from detr.data.image_checks import check_images
from detr.data.images import read_image, size_in_file
from detr.data.masks import encode
from detr.data.panoptic_mapper import read_segment_ids
from detr.data.statistics import box_statistics
from detr.errors import InputError
from detr.inference import image_inputs

SIDE = 40_000


@pytest.mark.parametrize(
    ("polygon", "size", "message"),
    [
        ([0, 0, 1.01e8, 0, 0, 1], (1, 2**31 - 1), r"a polygon reaches 101000000\.0"),  # pycocotools would crash
        ([0, 0, 10 * SIDE, 0, 0, 10 * SIDE] * 300, (SIDE, SIDE), "a border of 3600.* pixels"),  # or take 40 GB
    ],
)
def test_a_polygon_that_pycocotools_cannot_walk_along_is_an_error(polygon, size, message):
    with pytest.raises(InputError, match=rf"x\.jpg has an object with a segmentation .*{message}"):
        encode([polygon], size, "x.jpg")


def test_a_large_polygon_of_many_points_is_read():
    points = np.array([[x, 10 + 20_000 * (x % 200 > 100)] for x in range(0, SIDE, 100)] + [[0, 0]])
    rle = encode([points.ravel().tolist()], (SIDE, SIDE), "x.jpg")
    assert rle["size"] == [SIDE, SIDE]


def test_runs_for_more_pixels_than_32_bits_count_are_an_error():
    side = 2**20
    rle = {"size": [side, side], "counts": [0, side * side]}
    with pytest.raises(InputError, match="an RLE of 1048576 x 1048576 pixels"):
        encode(rle, (side, side), "x.jpg")


def test_an_image_of_more_pixels_than_32_bits_count_is_an_error():
    assert clean_image({"file_name": "x.tif", "height": 40_000, "width": 40_000})["width"] == 40_000
    with pytest.raises(InputError, match=r"x\.tif has the height 50000 and the width 50000: an image must have less"):
        clean_image({"file_name": "x.tif", "height": 50_000, "width": 50_000})


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_image(path, "RGB"),
        lambda path: image_inputs.read(path, "RGB"),
        lambda path: check_images([{"file_name": path, "height": 1, "width": 1}]),
        read_segment_ids,
        read_json,
    ],
)
def test_a_pipe_is_an_error_and_not_waited_for(tmp_path, read):
    path = str(tmp_path / "pipe.png")
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"pipe\.png is a pipe or a device, and not a file"):
        read(path)
    assert size_in_file(path) is None


@pytest.mark.parametrize("image_format", ["x", "P"])
def test_a_format_that_images_cannot_have_is_an_error(tmp_path, image_format):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    for read in (read_image, image_inputs.read):
        with pytest.raises(InputError, match=f"^INPUT.FORMAT is '{image_format}': it must be one of RGB, BGR, "):
            read(str(tmp_path / "a.png"), image_format)


def test_an_object_that_is_annotated_twice_is_warned_of(caplog):
    def annotation(box, category=0, **more):
        return {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, **more}

    twice, other = annotation([1, 2, 3, 4]), annotation([1, 2, 3, 4], category=1)
    crowd, outside = annotation([1, 2, 3, 4], iscrowd=1), annotation([90, 2, 3, 4])
    dicts = [
        {"file_name": name, "height": 24, "width": 32, "annotations": annotations}
        for name, annotations in (("a.jpg", [twice, other, crowd, outside, outside]), ("b.jpg", [twice, other, twice]))
    ]
    with caplog.at_level(logging.WARNING):
        box_statistics("mine", dicts, None)
    assert "mine: 1 of 5 objects have the image, the class and the box of another one" in caplog.text
    assert "The first is in b.jpg" in caplog.text
    caplog.clear()
    box_statistics("mine", [{**dicts[0]}], None)
    assert "of another one" not in caplog.text


def test_a_message_is_one_line_whatever_a_file_is_called(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(InputError) as error:
        read_image(str(tmp_path / "two\nlines\x1b[31m.png"), "RGB")
    assert str(error.value).isprintable()
