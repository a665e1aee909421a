"""COCO's box and mask AP of made-up detections: pycocotools beside hotcoco, which our evaluator counts with."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from benchmarks.timing import Result, Settings, race, require, take_turns
from detr.evaluation.coco import count

CLASSES, HEIGHT, WIDTH = 80, 480, 640
CORNERS = 12  # of the polygons that masks are
OBJECTS = 7.3  # an image, COCO's mean
DETECTIONS, HITS = 100, 3  # an image; tries to hit each object
BOUND = 1e-9
TASKS = ("bbox", "segm")


@dataclass(frozen=True)
class Data:
    """truth: a COCO file's content; results: detections, each with a box and an RLE mask."""

    truth: dict[str, Any]
    results: list[dict[str, Any]]


def coco(settings: Settings) -> Result:
    """A small set warms up, and all numbers of the timed turns are compared: a turn of pycocotools is minutes long."""
    images = 60 if settings.smoke else 1000
    data = make_data(images)
    outputs: dict[str, list[float]] = {}

    def count(data: Data) -> dict[str, Any]:
        return {
            "ours": lambda: outputs.update(ours=count_ours(data)),
            "pycocotools": lambda: outputs.update(pycocotools=count_pycocotools(data)),
        }

    race(count(make_data(20)), 0, lambda _: check(outputs))
    samples = take_turns(count(data), settings.repeats)
    agreement = check(outputs)
    return Result(samples, agreement=agreement, note=f"{images} images, {len(data.results)} detections")


def make_data(images: int, seed: int = 0) -> Data:
    """Objects as COCO has them in number and size, and DETR's number of detections: some near objects, most not."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        count = int(rng.poisson(OBJECTS))
        boxes, classes = _boxes(rng, count), rng.integers(1, CLASSES + 1, count)
        crowds = rng.random(count) < 0.01
        outlines = _polygons(rng, boxes)
        for box, label, crowd, outline in zip(boxes, classes, crowds, outlines, strict=True):
            rle = masks.frPyObjects([outline], HEIGHT, WIDTH)[0]
            annotation: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label)}
            annotation |= {"bbox": box.tolist(), "area": float(masks.area(rle)), "iscrowd": int(crowd)}
            annotations.append({**annotation, "segmentation": _counts(rle) if crowd else [outline]})
        near = np.repeat(np.arange(count), HITS)[:DETECTIONS]
        noise = rng.normal(0, 0.1, (len(near), 4)) * boxes[near][:, [2, 3, 2, 3]]
        tries = np.concatenate([boxes[near] + noise, _boxes(rng, DETECTIONS - len(near))])
        tries[:, 2:] = tries[:, 2:].clip(2)
        labels = np.concatenate([classes[near], rng.integers(1, CLASSES + 1, DETECTIONS - len(near))])
        scores = rng.random(DETECTIONS) * np.where(np.arange(DETECTIONS) < len(near), 1.0, 0.6)
        rles = masks.frPyObjects(_polygons(rng, tries), HEIGHT, WIDTH)
        for box, label, score, rle in zip(tries, labels, scores, rles, strict=True):
            result = {"image_id": image, "category_id": int(label), "bbox": box.tolist()}
            results.append({**result, "score": float(score), "segmentation": _counts(rle)})
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)]
    sizes = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in range(1, images + 1)]
    return Data({"images": sizes, "annotations": annotations, "categories": categories}, results)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) x, y, width, height in pixels, from tiny to the whole image."""
    size = np.exp(rng.uniform(np.log(8), np.log([WIDTH, HEIGHT]), (count, 2)))
    corner = rng.random((count, 2)) * ([WIDTH, HEIGHT] - size)
    return np.concatenate([corner, size], axis=1)


def _polygons(rng: np.random.Generator, boxes: np.ndarray) -> list[list[float]]:
    """A ragged ellipse in each box (N, 4)."""
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radius = rng.uniform(0.6, 1.0, (len(boxes), CORNERS))
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radius[..., None]  # (N, CORNERS, 2)
    points = boxes[:, None, :2] + (circle + 1) / 2 * boxes[:, None, 2:]
    return [outline.tolist() for outline in points.reshape(len(boxes), 2 * CORNERS)]


def _counts(rle: dict[str, Any]) -> dict[str, Any]:
    """As in a JSON file."""
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def _results_of(results: Sequence[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Copies, as Detectron2 makes them too: a counter writes into them, and the area of a mask is not its box's."""
    dropped = "bbox" if task == "segm" else "segmentation"
    return [{key: value for key, value in result.items() if key != dropped} for result in results]


def count_pycocotools(data: Data) -> list[float]:
    """The 12 numbers of boxes, then those of masks."""
    numbers: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = data.truth
        truth.createIndex()
        for task in TASKS:
            counted = COCOeval(truth, truth.loadRes(_results_of(data.results, task)), task)
            counted.evaluate()
            counted.accumulate()
            counted.summarize()
            numbers += [float(x) for x in counted.stats]
    return numbers


def count_ours(data: Data) -> list[float]:
    """The same by what our evaluator counts with."""
    return [float(x) for task in TASKS for x in count(data.truth, data.results, task).stats]


def check(outputs: dict[str, list[float]]) -> str:
    """All 24 numbers. Raises Disagreement."""
    apart = max(abs(x - y) for x, y in zip(outputs["ours"], outputs["pycocotools"], strict=True))
    box, mask = outputs["ours"][0], outputs["ours"][12]
    text = require("ours", {"24 numbers": apart}, {"24 numbers": BOUND})
    return f"{text}; box AP {box:.3f}, mask AP {mask:.3f}"
