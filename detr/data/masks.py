"""Masks of annotated objects: every format of Detectron2's dataset dicts -> pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from detr.errors import InputError

NO_CLASS = 255  # in a map of classes, as Detectron2 marks pixels without a label


def has_segmentation(annotation: dict[str, Any]) -> bool:
    """Whether an object has a segmentation that is not empty, of whatever format."""
    segmentation = annotation.get("segmentation")
    return segmentation is not None and len(segmentation) > 0


def check_segmentations(annotations: Sequence[dict[str, Any]], where: str) -> None:
    """Raises InputError for an object without a segmentation; where: the image's file name, for the message."""
    for obj in annotations:
        if not has_segmentation(obj):
            raise InputError(
                f"{where} has an object without a segmentation, and MODEL.MASK_ON is True: annotate it, or set "
                "MODEL.MASK_ON False for boxes only"
            )


def rasterize(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The pixels of an object, (H, W) bool.

    segmentation: polygons (lists of x1, y1, x2, y2, ... in pixels) whose union is the object, an RLE of COCO,
        compressed or not, or a bitmap (H, W)
    size: (H, W) of the image file
    where: the image's file name, for the message

    Raises InputError for a segmentation of another format, a damaged one, or one of another size.
    """
    height, width = size
    try:
        if isinstance(segmentation, np.ndarray):
            mask = segmentation
        elif isinstance(segmentation, dict):
            mask = _decode_rle(segmentation)
        else:
            mask = _fill_polygons(segmentation, height, width)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(
            f"{where} has an object with a segmentation that cannot be read ({type(error).__name__}: {error}): it "
            "must be polygons (lists of at least 3 points as x1, y1, x2, y2, ...), an RLE of COCO, or a bitmap"
        ) from error
    if mask.shape != size:
        raise InputError(
            f"{where} is {width} x {height} pixels (width x height), but the segmentation of an object is for "
            f"{' x '.join(map(str, reversed(mask.shape)))}: correct its annotation"
        )
    return mask.astype(bool)


def draw_classes(objects: Sequence[dict[str, Any]], boxes: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) uint8: the class of every pixel, 255 where there is no object.

    objects, boxes: as ``make_instances`` takes them; an object without a segmentation fills its box
    size: (H, W) of the image
    where: the image's file name, for messages

    Raises InputError for a class above 254 or a damaged segmentation.
    """
    classes = np.full(size, NO_CLASS, dtype=np.uint8)
    for obj, (x1, y1, x2, y2) in zip(objects, boxes.round().astype(int).tolist(), strict=True):
        if obj["category_id"] >= NO_CLASS:
            raise InputError(
                f"{where} has an object of category {obj['category_id']}, but augmentations that read sem_seg can tell "
                f"{NO_CLASS} classes apart: leave them out"
            )
        if has_segmentation(obj):
            classes[rasterize(obj["segmentation"], size, where)] = obj["category_id"]
        else:
            classes[y1:y2, x1:x2] = obj["category_id"]
    return classes


def _decode_rle(rle: dict[str, Any]) -> np.ndarray:
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *rle["size"])
    return mask_util.decode(rle)


def _fill_polygons(polygons: Any, height: int, width: int) -> np.ndarray:
    """The union of the polygons, filled as COCO does it."""
    flat = [np.asarray(polygon, dtype=np.float64).ravel() for polygon in polygons]
    for polygon in flat:
        # pycocotools takes 4 numbers for a box, and ignores the last of an odd number.
        if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise ValueError(f"a polygon with the {len(polygon)} numbers {polygon[:8].tolist()}")
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects([p.tolist() for p in flat], height, width)))
