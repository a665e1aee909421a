import torch
from torchvision.ops import generalized_box_iou

from detr.modeling.boxes import giou


def test_giou_by_hand():
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
    found = giou(others, unit)
    torch.testing.assert_close(found, torch.tensor([1.0, 1 / 3, -1 / 3, -1 / 2, 0.0]))


def test_all_with_all_is_torchvisions():
    corners = torch.rand(7, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values
    boxes = corners.flatten(1)  # xyxy
    torch.testing.assert_close(giou(boxes[:, None], boxes), generalized_box_iou(boxes, boxes))
