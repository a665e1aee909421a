"""Boxes and labels of annotated objects: Detectron2's dataset dicts -> checked arrays."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from detr.errors import InputError

BOX_MODES = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)


def check_objects(annotations: Sequence[dict[str, Any]], num_classes: int, where: str) -> None:
    """Raises InputError for an object without a box of 4 finite numbers in pixels or with a bad label.

    where: the image's file name, for the message
    """
    for key in ("bbox", "bbox_mode", "category_id"):
        if any(key not in obj for obj in annotations):
            raise InputError(f"{where} has an object without {key!r}: every object needs one")
    for obj in annotations:
        if not _is_box(obj["bbox"]):
            raise InputError(f"{where} has an object with the bbox {obj['bbox']}: it must be 4 finite numbers")
        if obj["bbox_mode"] not in BOX_MODES:
            raise InputError(
                f"{where} has an object with the bbox_mode {obj['bbox_mode']!r}: it must be BoxMode.XYXY_ABS or "
                "BoxMode.XYWH_ABS"
            )
    check_labels(annotations, num_classes, where)


def check_labels(annotations: Sequence[dict[str, Any]], num_classes: int, where: str) -> None:
    """Raises InputError for a category id outside [0, num_classes); where: the image's file name."""
    for obj in annotations:
        if not 0 <= obj["category_id"] < num_classes:
            raise InputError(
                f"{where} has an object of category {obj['category_id']}, outside [0, {num_classes}): set "
                "MODEL.DETR.NUM_CLASSES to the data set's number of classes, and map its ids to 0, 1, 2, ... "
                "when it is registered"
            )


def boxes_to_xyxy(annotations: Sequence[dict[str, Any]]) -> np.ndarray:
    """The boxes of objects that ``check_objects`` accepts: (M, 4) float32, xyxy in pixels of the image file."""
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


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and all(math.isfinite(value) for value in box)
    except TypeError:
        return False
