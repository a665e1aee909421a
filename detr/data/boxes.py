"""Arithmetic of annotated boxes: arrays in pixels of the image file."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode


def boxes_to_xyxy(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """The boxes of clean annotations (see ``annotations``): (M, 4) float32, xyxy in pixels of the image file."""
    boxes = np.array([[float(value) for value in obj["bbox"]] for obj in annotations], dtype=np.float32).reshape(-1, 4)
    is_xywh = np.array([obj["bbox_mode"] == BoxMode.XYWH_ABS for obj in annotations], dtype=bool)
    boxes[is_xywh, 2:] += boxes[is_xywh, :2]
    return boxes


def clip_boxes(boxes: np.ndarray, height: Any, width: Any) -> np.ndarray:
    """The parts of boxes (M, 4) xyxy that lie inside the image, of the same shape.

    height, width: of the image in pixels, or (M,) arrays with those of each box's image
    """
    limits = np.stack(np.broadcast_arrays(width, height, width, height), axis=-1)
    return np.minimum(boxes.clip(min=0), limits.astype(boxes.dtype))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """(M,) bool: which of the boxes (M, 4) xyxy have a positive width and height. The GIoU of others is undefined."""
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
