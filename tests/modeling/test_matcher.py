import pytest
import torch
from torchvision.ops import generalized_box_iou

from detr.modeling.matcher import HungarianMatcher, Targets, generalized_iou

BOXES = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]])


def logits_for(*classes, k=3):
    """One query a class: certain of it by a probability of about 0.95."""
    out = torch.zeros(len(classes), k + 1)
    out[range(len(classes)), list(classes)] = 4.0
    return out


def test_cost_by_hand():
    """Probability 0.5, L1 0.1, and boxes of area 0.04 that share 0.02: IoU 1/3 in a hull of 0.06, all covered."""
    logits = torch.tensor([[[[0.0, 0.0]]]])
    boxes = torch.tensor([[[[0.5, 0.5, 0.2, 0.2]]]])
    targets = Targets(torch.tensor([0]), torch.tensor([[0.6, 0.5, 0.2, 0.2]]), [1])
    cost = HungarianMatcher(cost_class=1, cost_bbox=5, cost_giou=2).cost(logits, boxes, targets)
    torch.testing.assert_close(cost, torch.tensor([[[[-0.5 + 5 * 0.1 - 2 * (1 / 3)]]]]))


def test_pairs_of_each_image_and_layer():
    """Two images, the second with its objects in another order; the second layer sees the queries reversed."""
    first = torch.stack([logits_for(0, 1, 2), logits_for(0, 1, 2)])  # (N, Q, K + 1)
    logits = torch.stack([first, first.flip(1)])
    boxes = torch.stack([BOXES.expand(2, -1, -1), BOXES.flip(0).expand(2, -1, -1)])
    # Image 0: one object. Image 1: four for three queries, the last like its second but worse in class and box.
    targets = Targets(torch.tensor([1, 0, 1, 2, 0]), BOXES[[1, 0, 1, 2, 1]], [1, 4])
    targets.boxes[4] += 0.01
    matches = HungarianMatcher()(logits, boxes, targets)
    pairs = torch.stack([matches.layer, matches.image, matches.query, matches.target], dim=1)
    assert pairs.tolist() == [
        *([0, 0, 1, 0], [0, 1, 0, 1], [0, 1, 1, 2], [0, 1, 2, 3]),
        *([1, 0, 1, 0], [1, 1, 0, 3], [1, 1, 1, 2], [1, 1, 2, 1]),
    ]


def test_no_objects_at_all():
    targets = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), [0, 0])
    matches = HungarianMatcher()(torch.zeros(2, 2, 3, 4), torch.full((2, 2, 3, 4), 0.5), targets)
    assert len(matches.query) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_cost_that_is_not_finite_names_layer_and_image(bad):
    boxes = torch.full((2, 3, 4, 4), 0.5)
    boxes[1, 2, 3, 0] = bad
    targets = Targets(torch.tensor([0, 1]), BOXES[:2], [1, 0, 1])
    with pytest.raises(FloatingPointError, match=r"image 2 of the batch is not finite at decoder layer 1"):
        HungarianMatcher()(torch.zeros(2, 3, 4, 4), boxes, targets)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_single(dtype):
    targets = Targets(torch.tensor([2, 0]), BOXES[[2, 0]], [2])
    matches = HungarianMatcher()(logits_for(0, 1, 2)[None, None].to(dtype), BOXES[None, None].to(dtype), targets)
    assert matches.query.tolist() == [0, 2]
    assert matches.target.tolist() == [1, 0]


def test_generalized_iou_by_hand():
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0])
    others = torch.tensor(
        [
            [0.0, 0.0, 1.0, 1.0],  # the same box
            [0.5, 0.0, 1.5, 1.0],  # overlap 1/2, union 3/2, which is the hull
            [2.0, 0.0, 3.0, 1.0],  # a gap of 1: union 2, hull 3
            [1.0, 1.0, 2.0, 2.0],  # touching corners: union 2, hull 4
            [0.5, 0.5, 0.5, 0.5],  # a point inside: union and hull 1
        ]
    )
    found = generalized_iou(others, unit)
    torch.testing.assert_close(found, torch.tensor([1.0, 1 / 3, -1 / 3, -1 / 2, 0.0]))


def test_all_with_all_is_torchvisions():
    corners = torch.rand(7, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
    boxes = corners.flatten(1)  # xyxy
    torch.testing.assert_close(generalized_iou(boxes[:, None], boxes), generalized_box_iou(boxes, boxes))
