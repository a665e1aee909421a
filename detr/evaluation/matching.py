"""Detections matched to annotated boxes as COCO's evaluation matches them, for one IoU threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from detr.errors import InputError

IOU = 0.5  # of a detection and the object that it finds
LEAST_IOU = 0.1  # of a detection and an object that have anything to do with each other
MOST_DETECTIONS = 100  # of an image and class, by score, as COCO counts them
NOTHING = -1


@dataclass(frozen=True)
class Objects:
    """The M annotated boxes, images in ascending order of their ids.

    index: (M,) the place of each in the annotations
    image: (M,) numbers in ``Matches.image_ids``; label: (M,) numbers of the classes
    box: (M, 4) xywh in pixels; crowd: (M,) bool, neither to be found nor wrong to be found; area: (M,) as annotated
    """

    index: np.ndarray
    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    crowd: np.ndarray
    area: np.ndarray

    def count(self, num_classes: int) -> np.ndarray:
        """(K,): the objects of each class, without crowds."""
        return np.bincount(self.label[~self.crowd], minlength=num_classes)


@dataclass(frozen=True)
class Matches:
    """D detections, by image in ascending order of the ids, then by falling score.

    image_ids: in ascending order
    index: (D,) the place of each in the results
    image: (D,) numbers in ``image_ids``; label: (D,) numbers of the classes
    box: (D, 4) xywh in pixels; score: (D,)
    found: (D,) the object of its class that a detection finds, or `NOTHING`
    ignored: (D,) bool: finds nothing, but lies in a crowd of its class
    pair_detection, pair_object, pair_iou: (P,) each: all pairs in an image, of whatever classes, with an IoU of
        `LEAST_IOU` or more, by detection and then by object. With a crowd, it is the share of the detection inside
    """

    image_ids: Sequence[Any]
    objects: Objects
    index: np.ndarray
    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray
    found: np.ndarray
    ignored: np.ndarray
    pair_detection: np.ndarray
    pair_object: np.ndarray
    pair_iou: np.ndarray


def match(
    content: Mapping[str, Any], results: Sequence[Mapping[str, Any]], category_ids: Sequence[Any] | None = None
) -> Matches:
    """
    content: of a COCO file, the ground truth; results: detections in COCO's format
    category_ids: of the K classes, in their order; by default all of the content, ascending

    In each image and class, detections choose by falling score the object with the highest IoU that no other has.
    Raises InputError for a detection of an image or a category that the ground truth does not have.
    """
    if category_ids is None:
        category_ids = sorted(x["id"] for x in content["categories"])
    image_ids = sorted(x["id"] for x in content["images"])
    images = {key: i for i, key in enumerate(image_ids)}
    labels = {key: i for i, key in enumerate(category_ids)}
    objects = _objects(content["annotations"], images, labels)
    image, label = (_numbers(results, key, numbers) for key, numbers in (("image_id", images), ("category_id", labels)))
    box = np.array([x["bbox"] for x in results], dtype=float).reshape(-1, 4)
    score = np.array([x["score"] for x in results], dtype=float)
    order = np.lexsort((-score, image))  # stable: of equal scores the first in the file comes first
    order = order[_rank(image[order] * len(labels) + label[order]) < MOST_DETECTIONS]
    image, label, box, score = image[order], label[order], box[order], score[order]
    detection, target, iou = _pairs(image, box, objects, len(image_ids))
    near = (label[detection] == objects.label[target]) & (iou >= IOU)
    found = assign(detection[near], target[near], iou[near], objects.crowd, objects.crowd, len(order))
    ignored = np.append(objects.crowd, False)[found]  # the last one for `NOTHING`
    found[ignored] = NOTHING
    return Matches(image_ids, objects, order, image, label, box, score, found, ignored, detection, target, iou)


def _objects(annotations: Sequence[Mapping[str, Any]], images: dict[Any, int], labels: dict[Any, int]) -> Objects:
    image, label = (
        _numbers(annotations, key, numbers) for key, numbers in (("image_id", images), ("category_id", labels))
    )
    box = np.array([x["bbox"] for x in annotations], dtype=float).reshape(-1, 4)
    crowd = np.array([bool(x.get("iscrowd")) for x in annotations], dtype=bool)
    area = np.array([x.get("area", x["bbox"][2] * x["bbox"][3]) for x in annotations], dtype=float)
    order = np.argsort(image, kind="stable")
    return Objects(order, image[order], label[order], box[order], crowd[order], area[order])


def _numbers(entries: Sequence[Mapping[str, Any]], key: str, numbers: dict[Any, int]) -> np.ndarray:
    try:
        return np.fromiter((numbers[x[key]] for x in entries), dtype=int, count=len(entries))
    except KeyError as error:
        raise InputError(
            f"a detection or an object has the {key} {error}, which the ground truth does not list: the results are "
            "those of another data set; evaluate again"
        ) from error


def _rank(group: np.ndarray) -> np.ndarray:
    """(D,): the place of each entry among those of its group."""
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], group[order])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(group)) - first
    return rank


def _pairs(image: np.ndarray, box: np.ndarray, objects: Objects, images: int) -> tuple[np.ndarray, ...]:
    """image, box: of the detections. Returns detection, object and IoU of the pairs, (P,) each."""
    numbers = np.arange(images + 1)
    detection_from, object_from = np.searchsorted(image, numbers), np.searchsorted(objects.image, numbers)
    found: list[tuple[np.ndarray, ...]] = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0))]
    for i in np.unique(objects.image):
        first, last, start, end = *detection_from[i : i + 2], *object_from[i : i + 2]
        if first == last:
            continue
        iou = mask_util.iou(box[first:last], objects.box[start:end], objects.crowd[start:end].astype(np.uint8))
        rows, columns = np.nonzero(iou >= LEAST_IOU)
        found.append((rows + first, columns + start, iou[rows, columns]))
    return tuple(np.concatenate(x) for x in zip(*found, strict=True))


def assign(
    detection: np.ndarray, target: np.ndarray, iou: np.ndarray, ignored: np.ndarray, crowd: np.ndarray, number: int
) -> np.ndarray:
    """For each detection the object that it gets, or `NOTHING`: (D,).

    detection, target, iou: (P,) the pairs that may be matched, by detection and then by object; detections come by
        falling score in each image and class
    ignored: (M,) bool: objects that a detection gets only where it gets no other
    crowd: (M,) bool: which of these any number of detections may get; number: D
    """
    result = np.full(number, NOTHING)
    taken: set[int] = set()
    current, best, best_iou, best_ignored = NOTHING, NOTHING, 0.0, True
    columns = (detection.tolist(), target.tolist(), iou.tolist(), ignored[target].tolist())
    for d, o, value, is_ignored in zip(*columns, strict=True):
        if d != current:
            if best != NOTHING:
                result[current] = best
                if not crowd[best]:
                    taken.add(best)
            current, best, best_iou, best_ignored = d, NOTHING, 0.0, True
        if o in taken or is_ignored > best_ignored:
            continue
        if is_ignored < best_ignored or value >= best_iou:  # of equal ones the last, as COCO's evaluation
            best, best_iou, best_ignored = o, value, is_ignored
    if best != NOTHING:
        result[current] = best
    return result
