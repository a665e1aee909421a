"""What the objects that are missed have in common."""

from itertools import pairwise

import numpy as np
from pycocotools import mask as mask_util

from detr.evaluation.matching import NOTHING, Matches, Objects
from detr.report.average_precision import AREAS
from detr.report.results import MissedObjects

OVERLAP = 0.2  # of a box that another object's box covers


def missed_objects(matches: Matches, unseen: np.ndarray) -> MissedObjects:
    """unseen: (M,) bool, the objects that are missed"""
    objects = matches.objects
    counted = ~objects.crowd
    found = np.zeros(len(counted), dtype=bool)
    found[matches.found[matches.found != NOTHING]] = True
    overlapping, small = _overlapping(objects), objects.area <= AREAS[1][1]
    return MissedObjects(
        count=int(unseen.sum()),
        lower_score=int((unseen & found).sum()),
        overlapping=int((unseen & overlapping).sum()),
        small=int((unseen & small).sum()),
        all_overlapping=int((counted & overlapping).sum()),
        all_small=int((counted & small).sum()),
    )


def _overlapping(objects: Objects) -> np.ndarray:
    """(M,) bool: whether another object of the image, no crowd, covers `OVERLAP` of an object's box or more."""
    result = np.zeros(len(objects.label), dtype=bool)
    counted = np.flatnonzero(~objects.crowd)
    image = objects.image[counted]
    for start, end in pairwise(np.flatnonzero(np.diff(image, prepend=-1, append=-1))):
        box = objects.box[counted[start:end]]
        covered = mask_util.iou(box, box, np.ones(len(box), dtype=np.uint8))  # of a crowd: shares of the first box
        np.fill_diagonal(covered, 0)
        result[counted[start:end]] = covered.max(axis=1) >= OVERLAP
    return result
