"""Generalised IoU of boxes that are paired by broadcasting.

torchvision's pairs all boxes with all, or indexes by a mask, for which a GPU makes the host wait.
"""

import torch
from torch import Tensor


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al., arXiv 1902.09630): (...) in (-1, 1].

    a, b: (..., 4) xyxy, of shapes that broadcast; of each pair one must have an area
    """
    intersection = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - intersection
    return intersection / union - (hull - union) / hull


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """0 where the corners are swapped, as those of an empty intersection are."""
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height
