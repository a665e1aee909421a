"""Masks of annotated objects: every notation of Detectron2's dataset dicts -> pixels."""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from detr.errors import InputError


def check_segmentations(annotations: list[dict[str, Any]], where: str) -> None:
    """Raises InputError where an object has no segmentation; where: the image's file name."""
    for obj in annotations:
        segmentation = obj.get("segmentation")
        if segmentation is None or not len(segmentation):
            raise InputError(
                f"{where} has an object without a segmentation, and MODEL.MASK_ON is True: annotate it, or set "
                "MODEL.MASK_ON False for boxes alone"
            )


def rasterize(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """The pixels of an object, (H, W) bool.

    segmentation: polygons (lists of x1, y1, x2, y2, ... in pixels) of which the object is the union, COCO's
        RLE, compressed or not, or a bitmap (H, W)
    size: (H, W) of the image as it is in its file, to which the segmentation belongs
    where: the image's file name, for the message

    Raises InputError for another notation, a damaged one, or one of another size.
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
            f"{' x '.join(map(str, reversed(mask.shape)))}: mend its annotation"
        )
    return mask.astype(bool)


def _decode_rle(rle: dict[str, Any]) -> np.ndarray:
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, *rle["size"])
    return mask_util.decode(rle)


def _fill_polygons(polygons: Any, height: int, width: int) -> np.ndarray:
    """As COCO fills them: what any of them covers belongs to the object."""
    flat = [np.asarray(polygon, dtype=np.float64).ravel() for polygon in polygons]
    for polygon in flat:
        # pycocotools would take 4 numbers for a box, and leave out an odd one.
        if len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise ValueError(f"a polygon with the {len(polygon)} numbers {polygon[:8].tolist()}")
    return mask_util.decode(mask_util.merge(mask_util.frPyObjects([p.tolist() for p in flat], height, width)))
