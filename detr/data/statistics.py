"""What data sets hold, as one table, and warnings where that cannot be what was meant."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from tabulate import tabulate

from detr.data.annotations import Fates, decide, flatten, shown
from detr.data.boxes import boxes_to_xyxy
from detr.data.masks import count_bad_polygons

SUSPICIOUS = 0.03  # the share of boxes that may be below a pixel or over the border without a warning

# For hashes of rows: odd numbers without a pattern
_ODD = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0xFF51AFD7ED558CCD,
        0xC4CEB9FE1A85EC53)  # fmt: skip

logger = logging.getLogger(__name__)

Row = dict[str, int]


def log_table(rows: Mapping[str, Row]) -> None:
    """rows: data set -> what ``box_statistics`` or ``segment_statistics`` return."""
    if not rows:
        return
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    body = [[key, *(row.get(key) for row in rows.values())] for key in keys]
    logger.info("What the data sets hold:\n%s", tabulate(body, headers=["", *rows], tablefmt="pipe"))


def box_statistics(
    name: str, dicts: Sequence[dict[str, Any]], classes: Sequence[str] | None, masks: bool = False
) -> Row:
    """Counts of a data set of boxes; warns of dropped boxes, and where many are not where boxes of objects are.

    name: of the data set; dicts: clean, with labels that were checked; classes: their names, where they are known
    masks: whether polygons are counted that are left out
    """
    flat, image, height, width = flatten(dicts)
    fates = decide(flat, height, width)
    sides = fates.boxes[:, 2:] - fates.boxes[:, :2]
    tiny = fates.objects & (sides < 1).any(axis=1)
    outside = ~fates.crowd & (np.abs(boxes_to_xyxy(flat) - fates.boxes).max(axis=1, initial=0) > 1)
    per_image = np.bincount(image[fates.objects], minlength=len(dicts))
    labels = np.array([obj["category_id"] for obj in flat], dtype=int)[fates.objects]
    rows = {
        "images": len(dicts),
        "images without objects": int((per_image == 0).sum()),
        "objects": int(fates.objects.sum()),
        "most objects in an image": int(per_image.max(initial=0)),
        "crowds": int(fates.crowd.sum()),
        "boxes without area in the image, dropped": int(fates.dropped.sum()),
        "boxes over the border, clipped": int(outside.sum()),
        "boxes below a pixel": int(tiny.sum()),
    }
    if classes is not None:
        rows["classes without objects"] = len(classes) - len(np.unique(labels))
    if masks:
        rows["polygons of less than 3 points, left out"] = sum(map(count_bad_polygons, flat))
    if fates.dropped.any():
        first = dicts[image[fates.dropped][0]]["file_name"]
        logger.warning(
            "%s: %d of %d boxes are dropped, neither learned nor evaluated, because they have no width or no height "
            "inside the image; the first is in %s",
            name,
            fates.dropped.sum(),
            len(flat),
            first,
        )
    _warn_of_twins(name, dicts, flat, image, fates)
    _warn_of_convention(name, dicts, flat, image, fates, tiny | outside | fates.dropped, height, width)
    return rows


def _warn_of_twins(
    name: str, dicts: Sequence[dict[str, Any]], flat: Sequence[dict[str, Any]], image: np.ndarray, fates: Fates
) -> None:
    """Logs a warning for objects with image, class and box of another one, each of which needs a query of its own."""
    where = np.flatnonzero(fates.objects)
    labels = np.array([obj["category_id"] for obj in flat], dtype=np.int64)[where]
    # Sorted by one number each, which is a hundred times faster than by rows; equal numbers are compared in full.
    rows = np.concatenate([np.stack([image[where], labels], axis=1), fates.boxes[where].view(np.int32)], axis=1)
    keys = (rows.astype(np.uint64) * np.array(_ODD, dtype=np.uint64)).sum(axis=1)
    order = np.argsort(keys, kind="stable")
    twins = order[1:][(rows[order[1:]] == rows[order[:-1]]).all(axis=1)]
    if len(twins):
        logger.warning(
            "%s: %d of %d objects have the image, the class and the box of another one: is each annotated twice? The "
            "first is in %s",
            name,
            len(twins),
            len(where),
            dicts[image[where[twins.min()]]]["file_name"],
        )


def segment_statistics(dicts: Sequence[dict[str, Any]], classes: Sequence[str] | None) -> Row:
    """Counts of a panoptic data set, whose objects are its segments."""
    counts = [len(x["segments_info"]) for x in dicts]
    labels = {segment["category_id"] for x in dicts for segment in x["segments_info"]}
    rows = {
        "images": len(dicts),
        "images without objects": counts.count(0),
        "objects": sum(counts),
        "most objects in an image": max(counts, default=0),
        "crowds": sum(bool(segment.get("iscrowd")) for x in dicts for segment in x["segments_info"]),
    }
    return rows if classes is None else {**rows, "classes without objects": len(classes) - len(labels)}


def warn_of_unseen_classes(dicts: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """Logs a warning for classes of which a training set has no object."""
    key = "annotations" if "annotations" in dicts[0] else "segments_info"
    seen = Counter(obj["category_id"] for x in dicts for obj in x[key])
    unseen = [name for index, name in enumerate(classes) if index not in seen]
    if unseen:
        logger.warning("no object of %d classes is in the training sets: %s", len(unseen), ", ".join(unseen[:5]))


def warn_of_surplus(dicts: Sequence[dict[str, Any]], numbers: Sequence[int], num_queries: int) -> None:
    """Logs a warning for images with more objects than queries; numbers: how many objects each image has."""
    crowded = [(number, x["file_name"]) for number, x in zip(numbers, dicts, strict=True) if number > num_queries]
    if crowded:
        most, where = max(crowded)
        logger.warning(
            "%d images have more objects than the %d queries, up to %d in %s: the surplus is not learned; set "
            "MODEL.DETR.NUM_OBJECT_QUERIES %d",
            len(crowded),
            num_queries,
            most,
            where,
            most,
        )


def _warn_of_convention(
    name: str,
    dicts: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    image: np.ndarray,
    fates: Fates,
    odd: np.ndarray,
    height: np.ndarray,
    width: np.ndarray,
) -> None:
    """Warns where more than a few percent of the boxes are odd; tells the convention by which they would not be."""
    counted = ~fates.crowd
    if not counted.any() or odd[counted].mean() <= SUSPICIOUS:
        return
    values = np.array([obj["bbox"] for obj in annotations], dtype=float)[counted]
    is_xywh = np.array([obj["bbox_mode"] == BoxMode.XYWH_ABS for obj in annotations])[counted]
    size = np.stack([width, height], axis=1)[counted]
    guess = _guess(values, is_xywh, size, 1 - odd[counted].mean())
    first = dicts[int(image[odd & counted][0])]
    example = annotations[int(np.flatnonzero(odd & counted)[0])]["bbox"]
    logger.warning(
        "%s: %d of %d boxes have no area, are below a pixel or reach over the border, the first %s in %s of %s x %s "
        "pixels; %s",
        name,
        odd.sum(),
        counted.sum(),
        shown([round(float(x), 3) for x in example]),
        first["file_name"],
        first.get("width", "unknown"),
        first.get("height", "unknown"),
        f"{guess}: correct the boxes, or their bbox_mode" if guess else "are the images those that were annotated?",
    )


def _guess(values: np.ndarray, is_xywh: np.ndarray, size: np.ndarray, fit: float) -> str | None:
    """Which other reading of the boxes (M, 4) fits clearly more of them than ``fit``, in words; None for none."""
    position, extent = values[:, :2], values[:, 2:]
    corners = np.where(is_xywh[:, None], np.concatenate([position, position + extent], axis=1), values)
    scale = np.concatenate([size, size], axis=1)
    if (np.abs(values) <= 2).mean() > 1 - SUSPICIOUS:
        return "they look like fractions of the image's width and height"
    readings = {
        "they look like x1, y1, x2, y2, and are declared as x, y, width, height": np.where(
            is_xywh[:, None], values, np.nan
        ),
        "they look like x, y, width, height, and are declared as x1, y1, x2, y2": np.where(
            is_xywh[:, None], np.nan, np.concatenate([position, position + extent], axis=1)
        ),
        "they look like the center x, center y, width, height": np.concatenate(
            [position - extent / 2, position + extent / 2], axis=1
        ),
        "they look as if x and y were exchanged": corners[:, [1, 0, 3, 2]],
    }
    best = max(readings, key=lambda text: _fit(readings[text], scale))
    return best if _fit(readings[best], scale) > max(fit + SUSPICIOUS, 0.9) else None


def _fit(boxes: np.ndarray, scale: np.ndarray) -> float:
    """The share of boxes (M, 4) xyxy that are inside their images, to a pixel, and not below a pixel."""
    inside = (boxes >= -1).all(axis=1) & (boxes <= scale + 1).all(axis=1)
    return float((inside & (boxes[:, 2:] - boxes[:, :2] >= 1).all(axis=1)).mean())
