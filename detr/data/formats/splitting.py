"""A validation set from the images of a training set."""

import logging
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from detr.errors import InputError

logger = logging.getLogger(__name__)

Dicts = list[dict[str, Any]]


def split_off(dicts: Sequence[dict[str, Any]], fraction: float = 0.2, seed: int = 0) -> tuple[Dicts, Dicts]:
    """Training and validation images, each in the order of their file names.

    dicts: Detectron2's
    fraction: of the images that become validation images, in (0, 1); at least one is left in each part
    seed: another one gives another split; the order of ``dicts`` does not matter

    Classes of two images or more are in both parts, as far as half of the images can do that for validation: rare
    classes choose their images first, which may take more than the fraction. Raises InputError for fewer than two
    images and for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise InputError(f"the fraction of validation images is {fraction}: it must be between 0 and 1")
    if len(dicts) < 2:
        raise InputError(f"a validation set cannot be split off {len(dicts)} image: two or more are needed")
    images = sorted(dicts, key=lambda x: str(x["file_name"]))
    random.Random(seed).shuffle(images)
    classes = [frozenset(x["category_id"] for x in image.get("annotations") or () if not x.get("iscrowd"))
               for image in images]  # fmt: skip
    wanted = min(max(round(fraction * len(images)), 1), len(images) - 1)
    chosen = _cover(classes, max(wanted, len(images) // 2))
    covered = len(chosen)
    left = Counter(label for i, labels in enumerate(classes) if i not in chosen for label in labels)
    for i, labels in enumerate(classes):
        if len(chosen) >= wanted:
            break
        if i not in chosen and all(left[label] > 1 for label in labels):
            chosen.add(i)
            left.subtract(labels)
    if covered > wanted:
        logger.info("%d images, not %d, are split off, so that they have as many classes as can be", covered, wanted)
    chosen = chosen or {0}  # where every class is in one image
    parts: tuple[Dicts, Dicts] = ([], [])
    for i, image in enumerate(images):
        parts[i in chosen].append(image)
    for part in parts:
        part.sort(key=lambda x: str(x["file_name"]))
    return parts


def _cover(classes: Sequence[frozenset[int]], most: int) -> set[int]:
    """At most so many images that they have every class of two images or more, and leave one image of each.

    classes: of every image, whose order decides between images that are alike
    """
    left = Counter(label for labels in classes for label in labels)
    chosen: set[int] = set()
    covered: set[int] = set()
    for label in sorted(left, key=lambda label: (left[label], label)):
        if label in covered:
            continue
        free = [
            i for i, labels in enumerate(classes)
            if label in labels and i not in chosen and all(left[other] > 1 for other in labels)
        ]  # fmt: skip
        if not free or len(chosen) >= most:
            continue
        best = max(free, key=lambda i: len(classes[i] - covered))
        chosen.add(best)
        covered |= classes[best]
        left.subtract(classes[best])
    return chosen
