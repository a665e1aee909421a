"""The classes that are found worst, and why."""

import numpy as np

from detr.report.results import BACKGROUND, MISSED, ClassReport, Finding, Report
from detr.report.wording import amount, percent

MOST = 3  # classes
FEWEST = 5  # objects of which a share says anything


def weak_classes(report: Report) -> list[Finding]:
    """Up to three classes whose AP is 0.03 or more below the mean, the weakest first."""
    mean = report.box.ap
    weak = sorted((x.box.ap, i) for i, x in enumerate(report.classes) if x.box.ap < mean - 0.03)
    return [_finding(report, i) for _, i in weak[:MOST]]


def top_confusion(report: Report, row: int | None = None) -> tuple[str, str, int] | None:
    """The most frequent confusion, true class, predicted class and how often; None where there is none.

    row: of this true class alone
    """
    classes = len(report.classes)
    numbers = report.confusion[:classes, :classes] * ~np.eye(classes, dtype=bool)
    if row is not None:
        numbers = numbers * (np.arange(classes) == row)[:, None]
    true, predicted = np.unravel_index(int(numbers.argmax()), numbers.shape) if classes else (0, 0)
    if not classes or not numbers[true, predicted]:
        return None
    return report.classes[true].name, report.classes[predicted].name, int(numbers[true, predicted])


def _finding(report: Report, number: int) -> Finding:
    weak = report.classes[number]
    reasons = [
        reason
        for reason in (_missed(report, number), _confused(report, number), _false(report, weak), _small(report, weak))
        if reason is not None
    ]
    if not reasons and weak.box.ap50 >= 0.9 * report.box.ap50:
        text = f"its objects are found (AP50 {percent(weak.box.ap50)}), but its boxes are loose"
        reasons.append((0.0, text, "train longer, and check that its labels are tight"))
    reasons.sort(key=lambda reason: -reason[0])
    why = "; ".join(text for _, text, _ in reasons[:2]) or f"AP50 {percent(weak.box.ap50)}, of no one cause"
    action = reasons[0][2] if reasons else "look at its objects in the images below"
    if weak.objects < 20:
        why += f"; with {amount(weak.objects, 'object')} the number is uncertain"
    text = f"{weak.name} is weak: AP {percent(weak.box.ap)}, the mean is {percent(report.box.ap)}; {why}."
    return Finding(text, f"For {weak.name}, {action}.")


# Each returns how much of the class it concerns, as a share, with the reason and what to do; or None.
Reason = tuple[float, str, str] | None


def _missed(report: Report, number: int) -> Reason:
    """Objects where nothing is detected, more often than of the other classes."""
    row, total = report.confusion[number], report.confusion[:-1].sum()
    count, share = int(row[-1]), row[-1] / max(row.sum(), 1)
    if count < 2 or share < 0.1 or share < 1.2 * report.confusion[:-1, -1].sum() / max(total, 1):
        return None
    text = f"{count} of its {amount(int(row.sum()), 'object')} have no detection"
    return share, text, "add examples like those that are missed"


def _confused(report: Report, number: int) -> Reason:
    """Objects that are taken for one other class."""
    objects = int(report.confusion[number].sum())
    confused = top_confusion(report, number)
    if confused is None or confused[2] < 2 or confused[2] < 0.05 * objects:
        return None
    _, other, count = confused
    text = f"{count} of its {amount(objects, 'object')} are taken for {other}"
    return count / objects, text, f"add examples that tell it from {other}, and check how both are labeled"


def _false(report: Report, weak: ClassReport) -> Reason:
    """Detections of the class that are wrong, more often than those of the other classes."""
    counts, overall = weak.counts, report.counts
    if counts.precision is None or overall.precision is None or counts.detections < FEWEST:
        return None
    wrong = 1 - counts.precision
    if wrong < 0.15 or wrong < 1.2 * (1 - overall.precision):
        return None
    kind = max((kind for kind in weak.errors if kind != MISSED), key=lambda kind: weak.errors[kind])
    number = amount(counts.detections, "detection")
    text = f"{counts.detections - counts.found} of its {number} are wrong, most of them by {kind}"
    if kind == BACKGROUND:
        return wrong, text, "look at what is taken for it, and label it or add such images without it"
    return wrong, text, "look at these detections in the images below"


def _small(report: Report, weak: ClassReport) -> Reason:
    """Objects that are smaller than those of the other classes."""
    share = weak.sizes[0] / max(weak.objects, 1)
    overall = sum(x.sizes[0] for x in report.classes) / max(report.counts.objects, 1)
    if share < overall + 0.1:
        return None
    text = f"{percent(share)} of its objects are small, of all classes {percent(overall)}"
    return share / 2, text, "use larger images"
