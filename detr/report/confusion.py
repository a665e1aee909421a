"""Which class was predicted for the objects of which class."""

import numpy as np

from detr.evaluation.matching import IOU, Matches


def confusion_matrix(matches: Matches, threshold: float, num_classes: int) -> np.ndarray:
    """(K + 1, K + 1) int: rows are the true classes, columns the predicted ones; the last of each is the background.

    Of the detections with a score of ``threshold`` or more and the objects in an image, whatever their classes, the
    pair with the highest IoU is taken, then the next of what is left, down to an IoU of 0.5. Objects without a
    detection are in the last column, detections without an object in the last row, unless they lie in a crowd of their
    class. (With `found` of ``matches`` the detections choose by their score, and among objects of their class alone.)
    """
    objects = matches.objects
    taken = (matches.score >= threshold) & ~matches.ignored
    detection, target = matches.pair_detection, matches.pair_object
    kept = np.flatnonzero(taken[detection] & ~objects.crowd[target] & (matches.pair_iou >= IOU))
    kept = kept[np.argsort(-matches.pair_iou[kept], kind="stable")]
    predicted = np.full(len(objects.label), num_classes)
    free = taken.copy()
    for d, o in zip(detection[kept].tolist(), target[kept].tolist(), strict=True):
        if free[d] and predicted[o] == num_classes:
            predicted[o], free[d] = matches.label[d], False
    true = np.append(objects.label[~objects.crowd], np.full(free.sum(), num_classes))
    columns = np.append(predicted[~objects.crowd], matches.label[free])
    size = num_classes + 1
    return np.bincount(true * size + columns, minlength=size**2).reshape(size, size)
