"""Average precision by class, over all IoU thresholds, at single ones, and of small, medium and large objects."""

import contextlib
import copy
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr.engine.coco_evaluation import count
from detr.report.results import AveragePrecision, Curve

RECALLS = np.linspace(0, 1, 101)
# of the precisions of COCO's evaluation: its number of the IoU threshold (None: the mean over all) and of the size
COLUMNS = ((None, 0), (0, 0), (5, 0), (None, 1), (None, 2), (None, 3))


def average_precision(
    content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], category_ids: Sequence[Any], task: str
) -> tuple[list[AveragePrecision], AveragePrecision]:
    """AP of each of the K classes, and their mean, by hotcoco where it is installed, else by pycocotools.

    content: of a COCO file, the ground truth; results: detections in COCO's format; task: "bbox" or "segm"
    category_ids: of the K classes, in their order

    AP is NaN for a class without objects (of the size), and the mean is over the others.
    """
    numbers = {key: i for i, key in enumerate(category_ids, start=1)}
    content = {**content, "categories": [{"id": i, "name": str(i)} for i in numbers.values()]}
    content["annotations"] = [{**x, "category_id": numbers[x["category_id"]]} for x in content["annotations"]]
    results = [{**x, "category_id": numbers[x["category_id"]]} for x in results]
    precision = _precision(content, results, task) if results else _zeros(content)
    precision = np.where(precision < 0, np.nan, precision)  # COCO's -1: no objects
    by_class = np.array([_mean(precision[slice(t, t if t is None else t + 1), :, :, a]) for t, a in COLUMNS])
    rows = [AveragePrecision(*map(float, row)) for row in by_class.T]
    return rows, AveragePrecision(*map(mean_over_classes, by_class))


def _precision(content: dict[str, Any], results: list[dict[str, Any]], task: str) -> np.ndarray:
    """(T, R, K, A), as COCO's evaluation accumulates it: IoU thresholds, recalls, classes, sizes."""
    if importlib.util.find_spec("hotcoco"):
        with contextlib.suppress(ValueError):  # hotcoco would count otherwise
            return np.asarray(count(content, results, task).eval["precision"])[..., -1]
    if task == "segm":  # else the area would be the box's
        results = [{key: value for key, value in x.items() if key != "bbox"} for x in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(content)
        truth.createIndex()
        counted = COCOeval(truth, truth.loadRes(results), task)
        counted.evaluate()
        counted.accumulate()
    return np.asarray(counted.eval["precision"])[..., -1]


def _zeros(content: dict[str, Any]) -> np.ndarray:
    """Without detections: 0 wherever there is an object, else -1."""
    result = np.full((10, len(RECALLS), len(content["categories"]), 4), -1.0)
    for x in content["annotations"]:
        if not x.get("iscrowd"):
            result[:, :, x["category_id"] - 1, [0, *(1 + i for i, holds in enumerate(size_of(x["area"])) if holds)]] = 0
    return result


def size_of(area: Any) -> tuple[Any, Any, Any]:
    """Whether an object of an area in pixels, a number or an array, counts as small, as medium, as large.

    COCO's ranges share their ends.
    """
    return area <= 32**2, (area >= 32**2) & (area <= 96**2), area >= 96**2


def _mean(precision: np.ndarray) -> np.ndarray:
    """(T, R, K) to (K,). A class has no NaN, or nothing else."""
    return precision.mean(axis=(0, 1))


def mean_over_classes(values: np.ndarray) -> float:
    """The mean of those that are not NaN; NaN where all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def curve(score: np.ndarray, found: np.ndarray, objects: int) -> Curve:
    """Precision against recall of one class at one IoU threshold, interpolated as COCO does.

    score: (D,) of the detections that count, those with equal scores in the order in which they are to come
    found: (D,) bool: whether each finds an object; objects: their number
    """
    if not objects:
        return Curve(np.full(len(RECALLS), np.nan), np.full(len(RECALLS), np.nan))
    order = np.argsort(-score, kind="stable")
    correct = np.cumsum(found[order])
    precision = correct / np.arange(1, len(order) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # the most at this recall or a higher one
    places = np.searchsorted(correct / objects, RECALLS)
    reached = places < len(order)
    places = places[reached]
    result = Curve(np.zeros(len(RECALLS)), np.full(len(RECALLS), np.nan))
    result.precision[reached], result.scores[reached] = precision[places], score[order][places]
    return result
