"""Masks of annotated objects: every format of Detectron2's dataset dicts -> pixels."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from detr.data.annotations import MOST_PIXELS, REACH, as_whole_number, shown
from detr.errors import InputError

Size = tuple[float, float]

# pycocotools walks along a border in steps of a fifth of a pixel, counts them in 32 bits and does not look for an
# overflow: what is larger would fill the memory, or end the process.
FARTHEST = 1e8  # coordinate of a polygon
LONGEST = 4e6  # border of a polygon

NO_CLASS = 255  # in a map of classes, as Detectron2 marks pixels without a label


def has_segmentation(annotation: dict[str, Any]) -> bool:
    """Whether an object has a segmentation, of whatever format, of which masks can be made."""
    segmentation = annotation.get("segmentation")
    return bool(_polygons(segmentation)) if isinstance(segmentation, (list, tuple)) else segmentation is not None


def read_segmentation(segmentation: Any, size: Size, where: str) -> Any:
    """The segmentation of an object as COCO's functions can take it: polygons, an RLE or a bitmap.

    segmentation: polygons (lists of x1, y1, x2, y2, ... in pixels, or of points) whose union is the object, an RLE of
        COCO, compressed or not, or a bitmap (H, W). Polygons of less than 3 points are left out.
    size: (H, W) of the image file; infinite where it is unknown
    where: the image's file name, for the message

    Raises InputError where there is no segmentation, and for one of another format or size, or outside the image.
    """
    if isinstance(segmentation, (list, tuple)):
        segmentation = _polygons(segmentation) or None
    if segmentation is None:
        raise InputError(
            f"{where} has an object without a segmentation, and MODEL.MASK_ON is True: annotate it (polygons of 3 or "
            "more points, an RLE or a bitmap), or set MODEL.MASK_ON False for boxes only"
        )
    try:
        if isinstance(segmentation, np.ndarray):
            shape = segmentation.shape
            is_float = segmentation.dtype.kind == "f"
            if segmentation.dtype.kind not in "biuf" or (is_float and not np.isin(segmentation, (0, 1, 255)).all()):
                raise ValueError("a bitmap whose values are neither 0 and 1 nor integers")
        elif isinstance(segmentation, dict):
            shape, segmentation = _read_rle(segmentation, size)
        elif not isinstance(segmentation, list):
            raise TypeError(f"a {type(segmentation).__name__}")
        else:
            shape, segmentation = size, _read_polygons(segmentation, size)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise InputError(
            f"{where} has an object with a segmentation that cannot be read ({type(error).__name__}: {error}): it "
            "must be polygons (lists of at least 3 points as x1, y1, x2, y2, ...), an RLE of COCO, or a bitmap"
        ) from error
    if math.isfinite(sum(size)) and tuple(shape) != tuple(size):
        raise InputError(
            f"{where} is {size[1]} x {size[0]} pixels (width x height), but the segmentation of an object is for "
            f"{' x '.join(map(str, reversed(shape)))}: correct its annotation"
        )
    return segmentation


def count_bad_polygons(annotation: dict[str, Any]) -> int:
    """How many parts of an object's segmentation are no polygon of 3 or more points; the others make its mask."""
    segmentation = annotation.get("segmentation")
    if not isinstance(segmentation, (list, tuple)):
        return 0
    good = _polygons(segmentation)
    return len(segmentation) - len(good) if good and isinstance(good[0], (list, tuple, np.ndarray)) else 0


def check_segmentations(annotations: Sequence[dict[str, Any]], size: Size, where: str) -> None:
    """Raises InputError as ``read_segmentation`` does."""
    for obj in annotations:
        read_segmentation(obj.get("segmentation"), size, where)


def encode(segmentation: Any, size: Size, where: str) -> dict[str, Any]:
    """The segmentation as a compressed RLE. Arguments and errors are those of ``read_segmentation``."""
    if not math.isfinite(sum(size)):
        raise InputError(f"{where} has no height and width, which masks need: give them in the data set")
    segmentation = read_segmentation(segmentation, size, where)
    if isinstance(segmentation, np.ndarray):
        return mask_util.encode(np.asfortranarray(segmentation.astype(bool).astype(np.uint8)))  # type: ignore[no-any-return]
    if isinstance(segmentation, dict):
        return segmentation
    return mask_util.merge(mask_util.frPyObjects(segmentation, *size))  # type: ignore[no-any-return]


def rasterize(segmentation: Any, size: Size, where: str) -> np.ndarray:
    """The pixels of an object, (H, W) bool. Arguments and errors are those of ``read_segmentation``."""
    if isinstance(segmentation, np.ndarray):
        return read_segmentation(segmentation, size, where).astype(bool)  # type: ignore[no-any-return]
    return mask_util.decode(encode(segmentation, size, where)).astype(bool)  # type: ignore[no-any-return]


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


def _polygons(segmentation: Sequence[Any]) -> list[Any]:
    """Those of at least 3 points; one polygon need not be in a list."""
    if segmentation and not any(isinstance(part, (list, tuple, np.ndarray)) for part in segmentation):
        segmentation = [segmentation]
    return [polygon for polygon in segmentation if _is_polygon(polygon)]


def _is_polygon(polygon: Any) -> bool:
    """Whether these are at least 3 points; pycocotools takes 4 numbers for a box, and ignores the last of 7."""
    if isinstance(polygon, (str, dict)) or not hasattr(polygon, "__len__"):
        return True  # read_segmentation refuses it
    flat = len(polygon) and not isinstance(polygon[0], (list, tuple, np.ndarray))
    return len(polygon) >= 6 and len(polygon) % 2 == 0 if flat else len(polygon) >= 3


def _read_polygons(polygons: Sequence[Any], size: Size) -> list[list[float]]:
    for polygon in polygons:
        shape = np.shape(polygon)
        if len(shape) > 1 and shape[-1] != 2:
            raise ValueError(f"a polygon of points that are no pairs, the first {shown(polygon[0])}")
    flat = [np.asarray(polygon).ravel() for polygon in polygons]
    for polygon in flat:
        if polygon.dtype.kind not in "iuf" or len(polygon) < 6 or len(polygon) % 2 or not np.isfinite(polygon).all():
            raise ValueError(f"a polygon with the {len(polygon)} numbers {shown(polygon[:8].tolist())}")
        reached = np.abs(polygon).max()
        if reached > min(REACH * max(size), FARTHEST):
            raise ValueError(f"a polygon reaches {shown(reached)} in an image of {size[1]} x {size[0]}")
        if len(polygon) * float(reached) > LONGEST and (length := _length(polygon)) > LONGEST:
            raise ValueError(f"a polygon with a border of {length:.0f} pixels in an image of {size[1]} x {size[0]}")
    return [polygon.tolist() for polygon in flat]


def _length(polygon: np.ndarray) -> float:
    """An upper bound of a border in pixels, as pycocotools walks it; polygon: (2 N,)."""
    points = polygon.astype(float).reshape(-1, 2)
    return float(np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum())


def _read_rle(rle: dict[str, Any], size: Size) -> tuple[tuple[int, int], dict[str, Any]]:
    """(size, compressed RLE). Raises ValueError where the runs do not fill the size, for pycocotools does not look."""
    height, width = (_as_side(side) for side in rle["size"])
    if math.isfinite(sum(size)) and (height, width) != tuple(size):
        return (height, width), rle  # before anything is allocated
    if height * width > MOST_PIXELS:
        raise ValueError(f"an RLE of {shown(height)} x {shown(width)} pixels")
    counts = rle["counts"]
    if isinstance(counts, (list, tuple)):
        if not all(isinstance(run, (int, np.integer)) and not isinstance(run, bool) and run >= 0 for run in counts):
            raise ValueError("an RLE whose counts are no whole numbers")
        runs, rle = sum(counts), {"size": [height, width], "counts": list(counts)}
    else:
        counts = counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
        runs, rle = _sum_of_runs(counts), {"size": [height, width], "counts": counts}
    if runs != height * width:
        raise ValueError(f"an RLE of {shown(runs)} pixels for a size of {width} x {height}")
    if isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, height, width)
    return (height, width), rle


def _as_side(side: Any) -> int:
    number = as_whole_number(side)
    if number is None or number < 1:
        raise ValueError(f"an RLE with the side {shown(side)}")
    return number


def _sum_of_runs(counts: bytes) -> int:
    """How many pixels a compressed RLE covers.

    A run is written in characters of 5 bits above 48, the lowest first; 32 says that another one follows, 16 in the
    last is the sign. From the fourth run on, the difference to the run before the previous one is written.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        if not 0 <= bits < 64:
            raise ValueError("an RLE whose counts hold other characters than COCO's")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift or min(runs, default=0) < 0:
        raise ValueError("an RLE whose counts are damaged")
    return sum(runs)
