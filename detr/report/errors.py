"""What kind of error each wrong detection is, which objects are missed, and what each kind costs.

The kinds, and the gain in AP50 where one kind is mended, are those of TIDE (Bolya et al., ECCV 2020, sections 3.1 and
3.3). Where more than one kind would fit a detection, the first of these is taken, as TIDE's own program does:
localization, classification, duplicate, background, both.
"""

from dataclasses import dataclass

import numpy as np

from detr.evaluation.matching import IOU, NOTHING, Matches
from detr.report.average_precision import mean_over_classes, precision_by_class
from detr.report.results import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    ERRORS,
    IGNORED,
    LOCALIZATION,
    MISSED,
)

KINDS = (CORRECT, *ERRORS, IGNORED)
NUMBER = {kind: i for i, kind in enumerate(KINDS)}


@dataclass(frozen=True)
class Kinds:
    """
    kind: (D,) of each detection, a number in `KINDS`
    target: (D,) the object that a correct detection finds, or that an error of localization, classification or
        duplication is at; `NOTHING` for others
    """

    kind: np.ndarray
    target: np.ndarray

    def are(self, *kinds: str) -> np.ndarray:
        """(D,) bool: whether each detection is of one of these kinds."""
        return np.isin(self.kind, [NUMBER[kind] for kind in kinds])


def classify(matches: Matches) -> Kinds:
    """The kind of each detection; it does not depend on those with lower scores."""
    same, own = _nearest(matches, same_class=True)
    other, others = _nearest(matches, same_class=False)
    found = matches.found != NOTHING
    conditions = {
        CORRECT: found,
        IGNORED: matches.ignored,
        LOCALIZATION: (own != NOTHING) & (same < IOU),
        CLASSIFICATION: other >= IOU,
        DUPLICATE: same >= IOU,
        BACKGROUND: (own == NOTHING) & (others == NOTHING),
    }
    kind = np.select(list(conditions.values()), [NUMBER[x] for x in conditions], NUMBER[BOTH])
    at_own = np.isin(kind, [NUMBER[LOCALIZATION], NUMBER[DUPLICATE]])
    target = np.select([found, at_own, kind == NUMBER[CLASSIFICATION]], [matches.found, own, others], NOTHING)
    return Kinds(kind, target)


def _nearest(matches: Matches, same_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the highest IoU with an object of its class, or of another class, and that object."""
    detection, target = matches.pair_detection, matches.pair_object
    same = matches.label[detection] == matches.objects.label[target]
    kept = np.flatnonzero((same == same_class) & ~matches.objects.crowd[target])
    kept = kept[np.argsort(matches.pair_iou[kept], kind="stable")]  # the highest is written last
    iou, nearest = np.zeros(len(matches.label)), np.full(len(matches.label), NOTHING)
    iou[detection[kept]], nearest[detection[kept]] = matches.pair_iou[kept], target[kept]
    return iou, nearest


def missed(matches: Matches, kinds: Kinds, threshold: float) -> np.ndarray:
    """(M,) bool: the objects that no detection of a score of ``threshold`` or more finds, and that no localization or
    classification error is at."""
    at = kinds.are(CORRECT, LOCALIZATION, CLASSIFICATION) & (matches.score >= threshold)
    covered = np.zeros(len(matches.objects.label), dtype=bool)
    covered[kinds.target[at]] = True
    return ~covered & ~matches.objects.crowd


def ap50_gains(matches: Matches, kinds: Kinds, num_classes: int) -> dict[str, float]:
    """Kind -> by how much AP50 rises where these errors alone are mended: TIDE's delta AP.

    A detection of the wrong class gets that of its object, and a misplaced one its place. It is removed instead where
    another detection has that object, or where an error of these two kinds with a higher score is at it, as TIDE's own
    program does. Duplicates, detections on background, and those with both errors are removed. Missed objects are taken
    out of those to be found; a class that has no others is then not counted. NaN without objects.
    """
    objects = matches.objects.count(num_classes)
    found = kinds.are(CORRECT)
    base = mean_over_classes(precision_by_class(matches.label, matches.score, found, ~kinds.are(IGNORED), objects))
    mendable = _first_at_free_objects(matches, kinds)
    gains = {}
    for kind in ERRORS:
        wrong, label, correct, left = kinds.are(kind), matches.label.copy(), found.copy(), objects
        if kind in (CLASSIFICATION, LOCALIZATION):
            right = mendable[wrong[mendable]]
            label[right] = matches.objects.label[kinds.target[right]]
            correct[right] = True
        if kind == MISSED:
            unseen = missed(matches, kinds, -np.inf)
            left = objects - np.bincount(matches.objects.label[unseen], minlength=num_classes)
        counted = (~wrong | correct) & ~kinds.are(IGNORED)
        mended = precision_by_class(label, matches.score, correct, counted, left)
        gains[kind] = mean_over_classes(mended) - base
    return gains


def _first_at_free_objects(matches: Matches, kinds: Kinds) -> np.ndarray:
    """Of each object that no detection finds, the error of class or place at it with the highest score: its number."""
    at = np.flatnonzero(kinds.are(CLASSIFICATION, LOCALIZATION))
    at = at[~np.isin(kinds.target[at], matches.found)]
    at = at[np.argsort(-matches.score[at], kind="stable")]
    return at[np.unique(kinds.target[at], return_index=True)[1]]
