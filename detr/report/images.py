"""The images that cost most, with what each of their objects and detections is."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from detr.evaluation.matching import Matches
from detr.report.errors import KINDS, NUMBER, Kinds
from detr.report.results import CLASSIFICATION, CORRECT, ERRORS, IGNORED, LOCALIZATION, MISSED, ImageReport


def worst_images(
    matches: Matches, kinds: Kinds, unseen: np.ndarray, threshold: float, files: Mapping[Any, str], most: int
) -> tuple[ImageReport, ...]:
    """The ``most`` images with the highest cost, wrong detections and missed objects; of equal ones those with fewer
    objects come first.

    unseen: (M,) bool, the missed objects; files: image id -> the image file
    """
    wrong = kinds.are(*ERRORS) & (matches.score >= threshold)
    number = len(matches.image_ids)
    cost = np.bincount(matches.image[wrong], minlength=number)
    cost += np.bincount(matches.objects.image[unseen], minlength=number)
    order = np.lexsort((np.bincount(matches.objects.image, minlength=number), -cost))[:most]
    return tuple(_image_report(matches, kinds, threshold, int(i), int(cost[i]), files) for i in order if cost[i])


def _image_report(
    matches: Matches, kinds: Kinds, threshold: float, image: int, cost: int, files: Mapping[Any, str]
) -> ImageReport:
    truth = matches.objects
    own = np.flatnonzero(truth.image == image)
    at = np.flatnonzero((matches.image == image) & (matches.score >= threshold))
    truth_kinds = np.where(truth.crowd[own], NUMBER[IGNORED], NUMBER[MISSED])
    for kind in (LOCALIZATION, CLASSIFICATION, CORRECT):  # the last one that fits is kept
        covered = np.isin(own, kinds.target[at][kinds.kind[at] == NUMBER[kind]])
        truth_kinds[covered] = NUMBER[kind]
    return ImageReport(
        image_id=matches.image_ids[image],
        file=files.get(matches.image_ids[image], ""),
        cost=cost,
        truth_boxes=_xyxy(truth.box[own]),
        truth_classes=truth.label[own],
        truth_crowd=truth.crowd[own],
        truth_kinds=tuple(KINDS[i] for i in truth_kinds),
        boxes=_xyxy(matches.box[at]),
        classes=matches.label[at],
        scores=matches.score[at],
        kinds=tuple(KINDS[i] for i in kinds.kind[at]),
    )


def _xyxy(box: np.ndarray) -> np.ndarray:
    return np.hstack([box[:, :2], box[:, :2] + box[:, 2:]])
