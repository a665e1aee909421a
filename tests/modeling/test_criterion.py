import math

import pytest
import torch
from torch.nn.functional import log_softmax

from detr.modeling.criterion import SetCriterion
from detr.modeling.matcher import HungarianMatcher, Targets

K = 2


@pytest.fixture
def criterion():
    return SetCriterion(matcher=HungarianMatcher(), num_classes=K)


def empty(images):
    return Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), [0] * images)


def test_losses_by_hand(criterion):
    """One image, two queries, one object of class 1: the second query is right but for 0.1 in x."""
    logits = torch.tensor([[[[0.0, 0.0, 0.0], [0.0, math.log(2), 0.0]]]])  # probabilities 1/3, and 1/4 1/2 1/4
    boxes = torch.tensor([[[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2]]]])
    targets = Targets(torch.tensor([1]), torch.tensor([[0.6, 0.5, 0.2, 0.2]]), [1])
    losses, matches = criterion(logits, boxes, targets)
    assert matches.query.tolist() == [1]
    assert losses.keys() == {"loss_ce", "loss_bbox", "loss_giou"}
    # no-object weighs 0.1, and the mean is over the weights
    torch.testing.assert_close(losses["loss_ce"], torch.tensor((math.log(2) + 0.1 * math.log(3)) / 1.1))
    torch.testing.assert_close(losses["loss_bbox"], torch.tensor(5 * 0.1))
    torch.testing.assert_close(losses["loss_giou"], torch.tensor(2 * (1 - 1 / 3)))


def test_box_losses_are_divided_by_the_objects_of_the_batch(criterion):
    boxes = torch.rand(1, 2, 4, 4) * 0.5 + 0.25
    one = Targets(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.3, 0.3]]), [1, 0])
    two = Targets(torch.tensor([0, 0]), torch.tensor([[0.5, 0.5, 0.3, 0.3]] * 2), [1, 1])
    boxes[:, 1] = boxes[:, 0]
    logits = torch.zeros(1, 2, 4, K + 1)
    torch.testing.assert_close(
        criterion(logits, boxes, one)[0]["loss_bbox"], criterion(logits, boxes, two)[0]["loss_bbox"]
    )


def test_images_without_objects_teach_no_object_only(criterion):
    logits = torch.randn(2, 3, 5, K + 1, requires_grad=True)
    boxes = torch.rand(2, 3, 5, 4, requires_grad=True)
    losses, _ = criterion(logits, boxes, empty(3))
    assert losses["loss_bbox"].item() == losses["loss_giou_0"].item() == 0
    expected = -log_softmax(logits, -1)[..., K].mean((1, 2))
    torch.testing.assert_close(torch.stack([losses["loss_ce_0"], losses["loss_ce"]]), expected)
    sum(losses.values()).backward()
    assert torch.isfinite(logits.grad).all()
    assert not boxes.grad.any()  # and yet every parameter has a gradient, as distributed training wants


def test_losses_are_in_single_precision_under_autocast(criterion):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 1, 5, K + 1, generator=generator).bfloat16()
    boxes = (torch.rand(1, 1, 5, 4, generator=generator) * 0.4 + 0.2).bfloat16()
    targets = Targets(torch.tensor([1, 0]), torch.tensor([[0.5, 0.5, 0.3, 0.3], [0.3, 0.4, 0.1, 0.2]]), [2])
    expected, _ = criterion(logits.float(), boxes.float(), targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses, _ = criterion(logits, boxes, targets)
    for key, value in expected.items():
        assert losses[key].dtype == torch.float32
        assert torch.equal(losses[key], value)


def test_metrics_by_hand(criterion):
    """Image 0: two objects, one classified rightly, three queries say object. Image 1: none, and none said."""
    logits = torch.full((1, 2, 3, K + 1), -5.0)
    logits[0, 0, :, 0] = 5.0
    logits[0, 1, :, K] = 5.0
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.9, 0.9]]).expand(1, 2, -1, -1)
    targets = Targets(torch.tensor([0, 1]), boxes[0, 0, :2], [2, 0])
    _, matches = criterion(logits, boxes, targets)
    metrics = criterion.metrics(logits, targets, matches)
    assert metrics["class_error"].item() == 50
    assert metrics["cardinality_error"].item() == 0.5
