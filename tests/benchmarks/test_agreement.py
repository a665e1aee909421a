"""Detections of other numberings are compared as the same things, and differences are refused."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from benchmarks.agreement import check_detections
from benchmarks.timing import Disagreement

SIZE, ROWS = (100, 200), 92
REFERENCE = {
    "scores": torch.tensor([0.9, 0.4]),
    "labels": torch.tensor([1, 13]),  # person, and the stop sign, whose COCO id is two above its place
    "boxes": torch.tensor([[0.0, 0.0, 50.0, 50.0], [20.0, 10.0, 120.0, 90.0]]),
}


def ours(score=0.9, label=11, left=20.0):
    boxes = Boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0], [left, 10.0, 120.0, 90.0]]))
    classes = torch.tensor([0, label])
    return {"instances": Instances(SIZE, pred_boxes=boxes, scores=torch.tensor([score, 0.4]), pred_classes=classes)}


def check(found):
    return check_detections({"ours": found, "original": REFERENCE, "transformers": dict(REFERENCE)}, SIZE, ROWS)


def test_the_same_in_another_numbering():
    text = check(ours())
    assert text.startswith("ours: scores 0.0e+00")
    assert "transformers: scores 0.0e+00" in text
    check(ours(score=0.9005, left=20.1))  # 0.1 of 200 pixels: half of the bound


@pytest.mark.parametrize("other", [{"score": 0.902}, {"label": 12}, {"left": 20.4}])
def test_another_answer_is_refused(other):
    with pytest.raises(Disagreement, match="ours gives another answer"):
        check(ours(**other))


def test_bfloat16_is_held_to_means():
    outputs = {"ours": ours(score=0.7), "original": REFERENCE}  # 0.2 and 0: a mean of 0.1
    assert check_detections(outputs, SIZE, ROWS, rounded=True).startswith("ours: mean of scores 1.0e-01")
    with pytest.raises(Disagreement):
        check_detections({"ours": ours(score=0.5), "original": REFERENCE}, SIZE, ROWS, rounded=True)
