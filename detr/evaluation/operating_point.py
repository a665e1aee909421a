"""Precision and recall of detections, and the score threshold at which they are best together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detr.evaluation.matching import NOTHING, match

ROUNDING = 0.002  # of F1, which a threshold of fewer digits may cost


@dataclass(frozen=True)
class ClassCounts:
    """Of one class, or of all: annotated objects, detections above the threshold, and those that find an object."""

    name: str
    objects: int
    detections: int
    found: int

    @property
    def precision(self) -> float | None:
        """The share of the detections that find an object; None where there are no detections."""
        return self.found / self.detections if self.detections else None

    @property
    def recall(self) -> float | None:
        """The share of the objects that are found; None where there are no objects."""
        return self.found / self.objects if self.objects else None

    @property
    def f1(self) -> float | None:
        """2 found / (objects + detections); None where there are neither."""
        return 2 * self.found / (self.objects + self.detections) if self.objects + self.detections else None


@dataclass(frozen=True)
class OperatingPoint:
    """threshold: the least score of a detection; classes: the counts of each class, then those of all of them"""

    threshold: float
    classes: tuple[ClassCounts, ...]


def best_operating_point(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> OperatingPoint | None:
    """The threshold with the highest F1 over all classes together.

    content: of a COCO file, the ground truth; results: detections in COCO's format
    A detection finds an object of its class with an IoU of 0.5 or more, as COCO's evaluation matches them; crowds, and
    what is in them, are not counted. Returns None where nothing is found at any threshold.
    """
    categories = sorted(content["categories"], key=lambda category: category["id"])
    matches = match(content, results)
    counted = ~matches.ignored
    label, score, found = matches.label[counted], matches.score[counted], matches.found[counted] != NOTHING
    objects = matches.objects.count(len(categories))
    threshold = best_threshold(score, found, int(objects.sum()))
    if threshold is None:
        return None
    names = [category["name"] for category in categories]
    return OperatingPoint(threshold, count_classes(names, label, score, found, objects, threshold))


def best_threshold(score: np.ndarray, found: np.ndarray, objects: int) -> float | None:
    """The score threshold with the highest F1, of two digits where these cost next to nothing; None where nothing is
    found.

    score: (D,) of the detections, in any order; found: (D,) bool: whether each finds an object; objects: their number
    """
    if not found.any():
        return None
    order = np.argsort(-score, kind="stable")
    score, f1 = score[order], 2 * np.cumsum(found[order]) / (objects + np.arange(1, len(order) + 1))
    # Equal scores are above a threshold together, or not at all.
    last = np.flatnonzero(np.diff(score, append=-np.inf))
    score, f1 = score[last], f1[last]
    best = int(f1.argmax())
    following = float(score[best + 1]) if best + 1 < len(score) else 0.0
    middle = (float(score[best]) + following) / 2  # of the last detection that is taken and the first that is not
    for threshold in (round(middle, 2), round(middle, 4)):
        taken = int(np.searchsorted(-score, -threshold, side="right"))  # scores that are as high or higher
        if threshold > 0 and taken and f1[taken - 1] >= f1[best] - ROUNDING:
            return threshold
    return middle


def count_classes(
    names: Sequence[str],
    label: np.ndarray,
    score: np.ndarray,
    found: np.ndarray,
    objects: np.ndarray,
    threshold: float,
) -> tuple[ClassCounts, ...]:
    """The counts at a threshold of each of the K classes, then those of all of them.

    label, score, found: (D,) of the detections, as ``best_threshold`` takes them; objects: (K,) their number
    """
    taken = score >= threshold
    detections = np.bincount(label[taken], minlength=len(names))
    correct = np.bincount(label[taken & found], minlength=len(names))
    columns = (objects.tolist(), detections.tolist(), correct.tolist())
    rows = [ClassCounts(name, *numbers) for name, *numbers in zip(names, *columns, strict=True)]
    return (*rows, ClassCounts("all", *map(sum, columns)))
