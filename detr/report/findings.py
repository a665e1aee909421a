"""What the numbers of a report say, in words, and what to do about it."""

import numpy as np

from detr.report.results import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    LOCALIZATION,
    MISSED,
    Finding,
    Report,
)
from detr.report.weak_classes import top_confusion, weak_classes
from detr.report.wording import amount, joined, percent, points, threshold

COSTLY = 0.01  # gain in AP50 from which a kind of error is worth a line
FEW_OBJECTS = 10  # of which AP says little

WHAT = {
    CLASSIFICATION: "Objects that are taken for another class",
    LOCALIZATION: "Boxes that are beside their objects",
    BOTH: "Boxes that are beside objects of another class",
    DUPLICATE: "Second detections of the same object",
    BACKGROUND: "Detections where there is no object",
    MISSED: "Objects without any detection",
}
ACTION = {
    CLASSIFICATION: "Look at the confusion matrix, give the confused classes more and clearer examples, and check how "
    "they are labeled.",
    LOCALIZATION: "Train longer, or with larger images (INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST), and check that the "
    "annotated boxes are tight.",
    BOTH: "Train longer: the model has neither learned the classes nor the places.",
    DUPLICATE: "Train longer: a decoder that has learned enough keeps its queries from taking the same object.",
    BACKGROUND: "Look at these detections: where they are on objects that nobody labeled, label them; else add images "
    "with what was taken for an object.",
    MISSED: "Look at the missed objects: more examples like them, larger images, or a longer training help.",
}


def findings(report: Report, detections_per_image: int = 0) -> tuple[Finding, ...]:
    """The most important first; each only where the numbers support it.

    detections_per_image: where all images have the same number of them, as DETR has one for each query; else 0
    """
    if not report.counts.objects:
        return (Finding(f"{report.dataset} has no object to find, only crowds.", "Evaluate on images with objects."),)
    if not report.detections:
        return (
            Finding(
                f"The model detects nothing in the {amount(report.images, 'image')}, at any score.",
                "Check in log.txt that trained weights were loaded.",
            ),
        )
    if not report.errors or not report.box.ap50 > 0:
        return (
            Finding(
                f"None of the {amount(report.detections, 'detection')} finds an object of its class.",
                "Check that the model's classes have the order of the data set's, that trained weights were loaded, "
                "and that the losses fell in training.",
            ),
        )
    return (
        *costly_errors(report),
        *missed_at_threshold(report),
        *weak_classes(report),
        *weak_size(report),
        *loose_boxes(report),
        *too_few_queries(report, detections_per_image),
        *operating_point(report),
        *own_thresholds(report),
        *few_objects(report),
    )


def costly_errors(report: Report) -> list[Finding]:
    """The kind of error that costs most AP50, and the second where it costs half as much or more."""
    ranked = sorted(report.errors, key=lambda error: -error.ap50_gain)[:2]
    least = max(COSTLY, ranked[0].ap50_gain / 2)
    result = []
    for i, error in enumerate(x for x in ranked if x.ap50_gain >= least):
        start = f"{WHAT[error.kind]} cost most" if i == 0 else f"{WHAT[error.kind]} come second"
        gain = f"AP50 is {percent(report.box.ap50)}, and would be {points(error.ap50_gain)} higher without them"
        of = (report.counts.objects, "object") if error.kind == MISSED else (report.counts.detections, "detection")
        here = f"at the threshold {threshold(report.threshold)} they are {error.count} of {amount(*of)}"
        if not error.count:
            here = f"all of them have scores below the threshold {threshold(report.threshold)}"
        text, action = f"{start}: {gain}; {here}.", ACTION[error.kind]
        if error.kind == CLASSIFICATION and (confused := top_confusion(report)):
            true, predicted, count = confused
            text += f" Most often {true} is taken for {predicted} ({amount(count, 'time')})."
        result.append(Finding(text, action))
    return result


def missed_at_threshold(report: Report) -> list[Finding]:
    """Where 5 % of the objects or more are missed at the threshold: how many, and what they have in common."""
    missed, objects = report.missed, report.counts.objects
    if missed.count < max(0.05 * objects, 2):
        return []
    text = f"At the threshold {threshold(report.threshold)}, {missed.count} of {amount(objects, 'object')} are missed"
    if missed.lower_score >= missed.count / 2:
        text += f"; {missed.lower_score} of these have a detection with a lower score"
    action = "Look at the images below for what they have in common, and add examples like them."
    share, usual = missed.overlapping / missed.count, missed.all_overlapping / objects
    if share >= 1.25 * usual and share >= 0.2:
        text += f". {percent(share)} of them overlap another object, of all objects {percent(usual)}"
        action = "Add images where objects overlap, and train longer; larger images keep neighbors apart."
    share, usual = missed.small / missed.count, missed.all_small / objects
    if share >= 1.25 * usual and share >= 0.2:
        text += f". {percent(share)} of them are small, of all objects {percent(usual)}"
        action = "Use larger images, or add images with small objects."
    return [Finding(f"{text}.", action)]


def weak_size(report: Report) -> list[Finding]:
    """Where objects of one size have clearly less AP than those of another."""
    numbers = np.array([x.sizes for x in report.classes]).sum(axis=0).tolist()
    box = report.box
    sizes = [
        (ap, number, name, range_)
        for ap, number, name, range_ in zip(
            (box.small, box.medium, box.large),
            numbers,
            ("small", "medium", "large"),
            ("below 32 x 32 pixels", "32 x 32 to 96 x 96 pixels", "above 96 x 96 pixels"),
            strict=True,
        )
        if number >= FEW_OBJECTS and not np.isnan(ap)
    ]
    if len(sizes) < 2:
        return []
    weakest, best = min(sizes), max(sizes)
    if best[0] - weakest[0] < 0.08:
        return []
    text = (
        f"{weakest[2].capitalize()} objects ({weakest[3]}) are found worst: AP {percent(weakest[0])} of "
        f"{amount(weakest[1], 'object')}, and {percent(best[0])} of the {best[2]} ones."
    )
    if weakest[2] == "large":
        action = "Train longer, and check that the augmentation does not crop most of the large objects."
    else:
        action = (
            "Use larger images (INPUT.MIN_SIZE_TRAIN and MIN_SIZE_TEST) or a backbone feature of a smaller stride; in "
            "large photos, demo.py --tiles."
        )
    return [Finding(text, action)]


def loose_boxes(report: Report) -> list[Finding]:
    """Where many boxes find their objects at IoU 0.5, but not at 0.75."""
    box = report.box
    if box.ap75 >= 0.6 * box.ap50:
        return []
    text = f"Boxes are loose: AP is {percent(box.ap50)} at IoU 0.5, but {percent(box.ap75)} at IoU 0.75."
    return [Finding(text, "Train longer, with the learning rate lowered at the end, and check that labels are tight.")]


def too_few_queries(report: Report, detections_per_image: int) -> list[Finding]:
    """Where an image has more objects than the model can detect."""
    if not 0 < detections_per_image < report.most_objects:
        return []
    text = (
        f"An image has {report.most_objects} objects, and the model gives {detections_per_image} detections of each "
        "image, so it must miss some."
    )
    return [Finding(text, "Raise MODEL.DETR.NUM_OBJECT_QUERIES, of other models TEST.DETECTIONS_PER_IMAGE.")]


def operating_point(report: Report) -> list[Finding]:
    """The threshold, and how good the detections are at it."""
    counts, least = report.counts, threshold(report.threshold)
    text = (
        f"Detections with a score of {least} or more are the best choice, by F1 ({percent(counts.f1)}): "
        f"{percent(counts.precision)} of them are right, and {percent(counts.recall)} of the objects are found."
    )
    action = (
        f"Use demo.py --confidence-threshold {least}; choose a higher one where false alarms are worse "
        "than misses, from the precision-recall curves."
    )
    return [Finding(text, action)]


def own_thresholds(report: Report) -> list[Finding]:
    """Classes that gain from a threshold of their own, by 0.03 in F1 or more."""
    gains = [
        (x.at_best.f1 - (x.counts.f1 or 0.0), x.name, x.best_threshold)
        for x in report.classes
        if x.at_best is not None and x.at_best.f1 is not None and x.best_threshold is not None
        if x.objects >= FEW_OBJECTS
    ]
    gains = sorted((x for x in gains if x[0] >= 0.03), key=lambda x: -x[0])[:3]
    if not gains:
        return []
    parts = [f"{name} at {threshold(best)} ({points(gain)} of F1)" for gain, name, best in gains]
    text = f"Some classes gain from a threshold of their own: {joined(parts)}."
    return [Finding(text, "Filter the detections of these classes by it.")]


def few_objects(report: Report) -> list[Finding]:
    """Classes of which the data set has no object, or too few to say much."""
    none = [x.name for x in report.classes if x.objects == 0]
    few = [x.name for x in report.classes if 0 < x.objects < FEW_OBJECTS]
    result = []
    if none:
        text = f"{report.dataset} has no object of {joined(none)}, so nothing is known of how they are found."
        result.append(Finding(text, "Add images of them to the data set for evaluation."))
    if few:
        text = f"{report.dataset} has fewer than {FEW_OBJECTS} objects of {joined(few)}, whose AP is uncertain."
        result.append(Finding(text, "Add images of them before comparing their AP."))
    return result
