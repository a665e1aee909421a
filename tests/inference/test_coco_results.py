"""Detections as COCO results."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as rle
from pycocotools.coco import COCO

from detr.errors import InputError
from detr.inference.coco_results import ResultsFile, coco_results


def instances(masks=False):
    found = Instances(
        (20, 30),
        pred_boxes=Boxes(torch.tensor([[2.0, 3, 12, 8], [-1, 0, 5, 20]])),
        scores=torch.tensor([0.75, 0.5]),
        pred_classes=torch.tensor([1, 0]),
    )
    if masks:
        found.pred_masks = torch.zeros(2, 20, 30, dtype=torch.bool)
        found.pred_masks[0, 3:8, 2:12] = True
    return found


def test_objects_become_dicts():
    assert coco_results(instances(), 4, "a.jpg", ("cat", "dog"), (17, 18)) == [
        {
            "image_id": 4,
            "file_name": "a.jpg",
            "category_id": 18,
            "category_name": "dog",
            "bbox": [2, 3, 10, 5],
            "score": 0.75,
        },
        {
            "image_id": 4,
            "file_name": "a.jpg",
            "category_id": 17,
            "category_name": "cat",
            "bbox": [-1, 0, 6, 20],
            "score": 0.5,
        },
    ]
    assert [x["category_id"] for x in coco_results(instances(), 4, "a.jpg")] == [1, 0]


def test_masks_become_rle():
    first, second = (x["segmentation"] for x in coco_results(instances(masks=True), 1, "a.jpg"))
    assert first["size"] == [20, 30]
    assert np.array_equal(rle.decode(first), instances(masks=True).pred_masks[0].numpy())
    assert rle.area(second) == 0


def test_the_file_is_what_pycocotools_loads(tmp_path, capsys):
    with ResultsFile(tmp_path / "new" / "found.json") as file:
        file.write(coco_results(instances(masks=True), 1, "a.jpg"))
        file.write([])
        file.write(coco_results(instances(masks=True), 2, "b.jpg"))
    truth = COCO()
    truth.dataset = {"info": {}, "images": [{"id": 1}, {"id": 2}], "categories": [{"id": 0}, {"id": 1}]}
    truth.createIndex()
    assert len(truth.loadRes(str(tmp_path / "new" / "found.json")).anns) == 4


def test_the_file_is_whole_after_an_interrupt_and_without_objects(tmp_path):
    path = tmp_path / "found.json"

    def interrupted():
        with ResultsFile(path) as file:
            file.write(coco_results(instances(), 1, "a.jpg"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(json.loads(path.read_text())) == 2
    with ResultsFile(path):
        pass
    assert json.loads(path.read_text()) == []


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        ResultsFile(tmp_path)
