"""Precision and recall of detections, and the score threshold at which they are best together."""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IOU = 0.5  # of a detection and the object that it finds


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


@dataclass(frozen=True)
class OperatingPoint:
    """threshold: the least score of a detection; classes: the counts of each class, then those of all of them"""

    threshold: float
    classes: tuple[ClassCounts, ...]


def best_operating_point(content: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> OperatingPoint | None:
    """The threshold with the highest F1 over all classes together, 2 found / (objects + detections).

    content: of a COCO file, the ground truth; results: detections in COCO's format
    A detection finds an object of its class with an IoU of 0.5 or more, as COCO's evaluation matches them; crowds, and
    what is in them, are not counted. Returns None where nothing is found at any threshold.
    """
    if not results or not content["annotations"]:
        return None
    matches = _match(content, results)
    scores, found = (np.concatenate([of_class[i] for _, of_class in matches]) for i in (0, 1))
    objects = sum(of_class[2] for _, of_class in matches)
    order = np.argsort(-scores, kind="stable")
    scores, f1 = scores[order], 2 * np.cumsum(found[order]) / (objects + np.arange(1, len(order) + 1))
    if not len(f1) or not f1.max():
        return None
    best = int(f1.argmax())
    following = scores[best + 1] if best + 1 < len(scores) else 0.0
    # Between the last detection that is taken and the first that is not, rounded where that leaves it between them.
    middle = float(scores[best] + following) / 2
    threshold = next((x for x in (round(middle, 2), round(middle, 4)) if following < x <= scores[best]), middle)
    rows = [_count(name, *of_class, threshold) for name, of_class in matches]
    total = ClassCounts("all", *(sum(getattr(row, key) for row in rows) for key in ("objects", "detections", "found")))
    return OperatingPoint(threshold, (*rows, total))


def _match(
    content: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
) -> list[tuple[str, tuple[np.ndarray, np.ndarray, int]]]:
    """For each class its name, the scores of its detections, whether each finds an object, and its objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dict(content))
        truth.createIndex()
        counter = COCOeval(truth, truth.loadRes([dict(x) for x in results]), "bbox")
        counter.params.iouThrs = np.array([IOU])
        counter.params.areaRng, counter.params.areaRngLbl = [[0, 1e10]], ["all"]
        counter.evaluate()
    names = {category["id"]: category["name"] for category in content["categories"]}
    images = len(counter.params.imgIds)
    matches = []
    for i, category in enumerate(counter.params.catIds):
        per_image = [x for x in counter.evalImgs[i * images : (i + 1) * images] if x is not None]
        counted = [~np.asarray(x["dtIgnore"][0], dtype=bool) for x in per_image]
        scores = [np.asarray(x["dtScores"], dtype=float)[kept] for x, kept in zip(per_image, counted, strict=True)]
        found = [np.asarray(x["dtMatches"][0])[kept] > 0 for x, kept in zip(per_image, counted, strict=True)]
        objects = sum(int((~np.asarray(x["gtIgnore"], dtype=bool)).sum()) for x in per_image)
        empty = np.zeros(0)
        matches.append((names[category], (np.concatenate([empty, *scores]), np.concatenate([empty, *found]), objects)))
    return matches


def _count(name: str, scores: np.ndarray, found: np.ndarray, objects: int, threshold: float) -> ClassCounts:
    taken = scores >= threshold
    return ClassCounts(name, objects, int(taken.sum()), int(found[taken].sum()))
