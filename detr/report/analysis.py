"""From a run to its report: AP, errors, confusions, the images that cost most, and what follows from them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detr.evaluation.matching import NOTHING, Matches, match
from detr.evaluation.operating_point import ClassCounts, best_threshold, count_classes
from detr.report.average_precision import AREAS, box_precision, curve, mask_precision
from detr.report.confusion import confusion_matrix
from detr.report.errors import KINDS, NUMBER, Kinds, ap50_gains, classify, missed
from detr.report.findings import findings
from detr.report.images import worst_images
from detr.report.missed_objects import missed_objects
from detr.report.results import ERRORS, MISSED, ClassReport, ErrorReport, Report, Run
from detr.report.training_findings import training_findings

NOTHING_CORRECT = 0.5  # the threshold where no detection is correct


def analyze(run: Run, worst: int = 24) -> Report:
    """worst: how many images, at most, to give with all their objects and detections

    Raises InputError for detections of images or categories that the ground truth does not have.
    """
    matches = match(run.truth, run.detections, run.category_ids)
    kinds = classify(matches)
    objects = matches.objects.count(len(run.class_names))
    counted, found = ~matches.ignored, matches.found != NOTHING
    threshold = best_threshold(matches.score[counted], found[counted], int(objects.sum()))
    threshold = NOTHING_CORRECT if threshold is None else threshold
    unseen = missed(matches, kinds, threshold)
    *classes, total = count_classes(
        run.class_names, matches.label[counted], matches.score[counted], found[counted], objects, threshold
    )
    box, mean_box = box_precision(matches, len(objects))
    mask: Sequence[Any] = [None] * len(box)
    mean_mask = None
    if run.has_masks:
        mask, mean_mask = mask_precision(matches, len(objects), run.truth, run.detections)
    details = _details(matches, kinds, objects, run.class_names)
    errors = _errors_by_class(matches, kinds, unseen, threshold, len(objects))
    report = Report(
        dataset=run.dataset,
        images=len(matches.image_ids),
        objects=int(objects.sum()),
        most_objects=int(np.bincount(matches.objects.image[~matches.objects.crowd], minlength=1).max()),
        detections=len(matches.score),
        box=mean_box,
        mask=mean_mask,
        threshold=threshold,
        classes=tuple(
            ClassReport(box=box[i], mask=mask[i], counts=classes[i], errors=errors[i], **details[i])
            for i in range(len(objects))
        ),
        counts=total,
        confusion=confusion_matrix(matches, threshold, len(objects)),
        errors=_error_reports(matches, kinds, unseen, threshold, len(objects)),
        missed=missed_objects(matches, unseen),
        worst=worst_images(matches, kinds, unseen, threshold, run.files, worst),
        findings=(),
        warnings=run.warnings,
    )
    words = (*findings(report, _detections_per_image(matches)), *training_findings(run.metrics, run.dataset))
    return dataclasses.replace(report, findings=words)


def _detections_per_image(matches: Matches) -> int:
    """The number of detections that every image has, as those of DETR have one a query; 0 where it differs."""
    numbers = np.bincount(matches.image, minlength=len(matches.image_ids))
    return int(numbers.max()) if numbers.min() == numbers.max() else 0


def _details(matches: Matches, kinds: Kinds, objects: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Of each class what does not depend on the report's threshold, by the names of ``ClassReport``."""
    truth = matches.objects
    by_label = np.argsort(matches.label, kind="stable")
    ends = np.searchsorted(matches.label[by_label], np.arange(len(names) + 1))
    rows = []
    for i, name in enumerate(names):
        at = by_label[ends[i] : ends[i + 1]]
        at = at[~matches.ignored[at]]
        score, found = matches.score[at], matches.found[at] != NOTHING
        own = (truth.label == i) & ~truth.crowd
        best = best_threshold(score, found, int(objects[i]))
        at_best = None
        if best is not None:
            taken = score >= best
            at_best = ClassCounts(name, int(objects[i]), int(taken.sum()), int(found[taken].sum()))
        rows.append(
            {
                "name": name,
                "curve": curve(score, found, int(objects[i])),
                "objects": int(objects[i]),
                "images": len(np.unique(truth.image[own])),
                "sizes": tuple(int(((truth.area[own] >= a) & (truth.area[own] <= b)).sum()) for a, b in AREAS[1:]),
                "best_threshold": best,
                "at_best": at_best,
            }
        )
    return rows


def _errors_by_class(
    matches: Matches, kinds: Kinds, unseen: np.ndarray, threshold: float, num_classes: int
) -> list[Mapping[str, int]]:
    taken = matches.score >= threshold
    size = len(KINDS)
    numbers = np.bincount(matches.label[taken] * size + kinds.kind[taken], minlength=num_classes * size)
    numbers = numbers.reshape(num_classes, size)
    numbers[:, NUMBER[MISSED]] = np.bincount(matches.objects.label[unseen], minlength=num_classes)
    return [{kind: int(row[NUMBER[kind]]) for kind in ERRORS} for row in numbers]


def _error_reports(
    matches: Matches, kinds: Kinds, unseen: np.ndarray, threshold: float, num_classes: int
) -> tuple[ErrorReport, ...]:
    gains = ap50_gains(matches, kinds, num_classes)
    taken = matches.score >= threshold
    reports = []
    for kind in ERRORS:
        count, count_all = int((kinds.are(kind) & taken).sum()), int(kinds.are(kind).sum())
        if kind == MISSED:
            count, count_all = int(unseen.sum()), int(missed(matches, kinds, -np.inf).sum())
        reports.append(ErrorReport(kind, count, count_all, gains[kind]))
    return tuple(reports)
