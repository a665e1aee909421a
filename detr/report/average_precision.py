"""Average precision by class: over COCO's IoU thresholds, at single ones, and of small, medium and large objects.

The numbers are those of pycocotools, which needs many minutes for what takes seconds here.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from detr.evaluation.matching import IOU, NOTHING, Matches, assign
from detr.report.results import AveragePrecision, Curve

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# The least and the most area, in pixels, of all objects, and of small, medium and large ones; the ends are shared.
AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # detections, objects, IoU; (P,) each


def box_precision(matches: Matches, num_classes: int) -> tuple[list[AveragePrecision], AveragePrecision]:
    """AP of the boxes of each of the K classes, and their mean over those that have objects (of the size)."""
    pairs = (matches.pair_detection, matches.pair_object, matches.pair_iou)
    return _precision(matches, num_classes, pairs, matches.box[:, 2] * matches.box[:, 3])


def mask_precision(
    matches: Matches, num_classes: int, content: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> tuple[list[AveragePrecision], AveragePrecision]:
    """The same of the masks. content, results: of which the matches are; each with an RLE as its segmentation."""
    objects = matches.objects
    true = [content["annotations"][i]["segmentation"] for i in objects.index]
    masks = [results[i]["segmentation"] for i in matches.index]
    numbers = np.arange(len(matches.image_ids) + 1)
    detection_from, object_from = np.searchsorted(matches.image, numbers), np.searchsorted(objects.image, numbers)
    parts: list[Pairs] = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))]
    for i in np.unique(objects.image):
        own = np.arange(object_from[i], object_from[i + 1])
        at = np.arange(detection_from[i], detection_from[i + 1])
        at = at[np.isin(matches.label[at], objects.label[own])]
        if len(at):
            crowd = objects.crowd[own].astype(np.uint8)
            iou = mask_util.iou([masks[d] for d in at], [true[o] for o in own], crowd)
            rows, columns = np.nonzero(iou >= IOU)
            parts.append((at[rows], own[columns], iou[rows, columns]))
    detection, target, iou = (np.concatenate(x) for x in zip(*parts, strict=True))
    area = np.array([mask_util.area(x) for x in masks], dtype=float)  # of a list of masks it overflows
    return _precision(matches, num_classes, (detection, target, iou), area)


def _precision(
    matches: Matches, num_classes: int, pairs: Pairs, area: np.ndarray
) -> tuple[list[AveragePrecision], AveragePrecision]:
    """area: (D,) of the detections, in pixels"""
    same = matches.label[pairs[0]] == matches.objects.label[pairs[1]]
    pairs = (pairs[0][same], pairs[1][same], pairs[2][same])
    values = np.array([[_at(matches, num_classes, pairs, area, a, t) for t in IOUS] for a in AREAS])  # (A, T, K)
    every, at_50, at_75 = values.mean(axis=1), values[0, 0], values[0, 5]
    columns = np.array([every[0], at_50, at_75, *every[1:]])
    return [AveragePrecision(*map(float, x)) for x in columns.T], AveragePrecision(*map(mean_over_classes, columns))


def _at(
    matches: Matches, num_classes: int, pairs: Pairs, area: np.ndarray, limits: tuple[float, float], threshold: float
) -> np.ndarray:
    """(K,) AP at one IoU threshold, of objects and detections with an area within the limits."""
    objects, number = matches.objects, len(area)
    ignored = objects.crowd | (objects.area < limits[0]) | (objects.area > limits[1])
    near = pairs[2] >= threshold
    found = assign(pairs[0][near], pairs[1][near], pairs[2][near], ignored, objects.crowd, number)
    outside = (area < limits[0]) | (area > limits[1])
    counted = np.where(found == NOTHING, ~outside, ~np.append(ignored, False)[found])
    return precision_by_class(
        matches.label,
        matches.score,
        found != NOTHING,
        counted,
        np.bincount(objects.label[~ignored], minlength=num_classes),
    )


def precision_by_class(
    label: np.ndarray, score: np.ndarray, found: np.ndarray, counted: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """(K,) AP at one IoU threshold; NaN for a class without objects.

    label, score, found: (D,) of the detections, those with equal scores in the order in which they are to come
    counted: (D,) bool: what is left out is as if it were not detected; objects: (K,) their number
    """
    at = np.flatnonzero(counted)
    at = at[np.lexsort((-score[at], label[at]))]
    ends = np.searchsorted(label[at], np.arange(len(objects) + 1))
    found = found[at]
    parts = [found[start:end] for start, end in pairwise(ends)]
    return np.array([_interpolate(x, int(n))[0].mean() for x, n in zip(parts, objects, strict=True)])


def mean_over_classes(values: np.ndarray) -> float:
    """The mean of those that are not NaN; NaN where all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def curve(score: np.ndarray, found: np.ndarray, objects: int) -> Curve:
    """Precision against recall of one class at one IoU threshold.

    score, found: (D,) of the detections that count, as ``precision_by_class`` takes them; objects: their number
    """
    order = np.argsort(-score, kind="stable")
    precision, places = _interpolate(found[order], objects)
    scores = np.full(len(RECALLS), np.nan)
    scores[: len(places)] = score[order][places]
    return Curve(precision, scores)


def _interpolate(found: np.ndarray, objects: int) -> tuple[np.ndarray, np.ndarray]:
    """found: (D,) bool, by falling score. Returns the precisions at `RECALLS`, as COCO interpolates them, (101,), and
    for the recalls that are reached the places of the detections that do so."""
    if not objects:
        return np.full(len(RECALLS), np.nan), np.zeros(0, dtype=int)
    correct = np.cumsum(found)
    precision = correct / np.arange(1, len(found) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the most at this recall or a higher one
    places = np.searchsorted(correct / objects, RECALLS)
    places = places[places < len(found)]
    result = np.zeros(len(RECALLS))
    result[: len(places)] = precision[places]
    return result, places
