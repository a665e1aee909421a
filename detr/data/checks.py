"""Checks of clean data sets before training and evaluation: classes, labels and segmentations."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from detr.data.annotations import check_labels, decide, flatten, shown, size_of
from detr.data.masks import check_segmentations
from detr.data.metadata import class_names, is_panoptic
from detr.errors import InputError

logger = logging.getLogger(__name__)


def check_classes(name: str, num_classes: int) -> None:
    """Raises InputError where ``num_classes`` is not the data set's number of classes.

    The classes of a panoptic set are things and stuff together; their ids are checked too.
    """
    if is_panoptic(name):
        _check_panoptic_ids(name)
    classes = class_names(name)
    if classes is None:
        return
    if odd := [label for label in classes if not isinstance(label, str) or not label]:
        raise InputError(f"the data set {name} has the class {shown(odd[0])} in its metadata: its name must be a text")
    if len(classes) != num_classes:
        raise InputError(
            f"MODEL.DETR.NUM_CLASSES is {num_classes}, but the data set {name} has {len(classes)} classes "
            f"({shorten(classes)}): set MODEL.DETR.NUM_CLASSES {len(classes)}"
        )
    if len(set(classes)) < len(classes):
        twice = next(label for label in classes if classes.count(label) > 1)
        logger.warning("%s: the class %s is listed more than once; was the file merged from two?", name, twice)
    logger.info("%s: %d classes, 0 = %s ... %d = %s", name, num_classes, classes[0], num_classes - 1, classes[-1])


def _check_panoptic_ids(name: str) -> None:
    """Raises InputError where things and stuff are not numbered as the mapper and the evaluators need them."""
    metadata = MetadataCatalog.get(name)
    ids = [metadata.get(f"{kind}_dataset_id_to_contiguous_id") for kind in ("thing", "stuff")]
    things, stuff = (
        sorted(x.values()) if isinstance(x, Mapping) and {*map(type, x.values())} <= {int} else [] for x in ids
    )
    classes = class_names(name) or []
    if things and things + stuff == list(range(len(classes))):
        return
    separated = name.endswith("_separated")
    raise InputError(
        f"the panoptic data set {name} has the things {shorten(things)} and the stuff {shorten(stuff)} in its "
        f"metadata's *_dataset_id_to_contiguous_id, and {len(classes)} stuff_classes: Detr needs things as 0, 1, ..., "
        "stuff after them, and the names of both in stuff_classes"
        + (f", which {name.removesuffix('_separated')} has" if separated else "")
    )


def check_same_classes(names: Sequence[str]) -> None:
    """Raises InputError where the data sets name or order their classes differently, since AP would be near 0."""
    named = {name: class_names(name) for name in names}
    known = {name: classes for name, classes in named.items() if classes is not None}
    for name, classes in known.items():
        first = next(iter(known))
        for index, (a, b) in enumerate(zip(known[first], classes, strict=False)):
            if a != b:
                raise InputError(
                    f"class {index} is {a!r} in the data set {first}, but {b!r} in {name}: both must list the same "
                    "categories in the same order"
                )


def check_same_task(names: Sequence[str]) -> None:
    """Raises InputError where only some of the data sets are panoptic, since their dicts hold different keys."""
    panoptic = [name for name in names if is_panoptic(name)]
    if panoptic and len(panoptic) < len(names):
        other = next(name for name in names if name not in panoptic)
        raise InputError(
            f"DATASETS.TRAIN has {panoptic[0]}, which is panoptic, and {other}, which is not: train on one kind"
        )


def check_dicts(name: str, dicts: Sequence[dict[str, Any]], num_classes: int, masks: bool = False) -> None:
    """Checks labels and segmentations of a data set.

    name: of the data set; dicts: clean (see ``annotations``)
    masks: whether every object needs a segmentation

    Raises InputError that names the first bad image, and where annotations are there but no object is left of them.
    """
    flat, _, height, width = flatten(dicts)
    fates = decide(flat, height, width)
    labels = np.array([obj["category_id"] for obj in flat], dtype=int)[~fates.crowd]
    wrong = bool(((labels < 0) | (labels >= num_classes)).any())
    for x in dicts if wrong or masks else ():
        objects = [obj for obj in x["annotations"] if not obj.get("iscrowd", 0)]
        check_labels(objects, num_classes, x["file_name"])
        if masks:
            check_segmentations(objects, size_of(x), x["file_name"])
    if flat and not fates.objects.any():
        raise InputError(
            f"no object is left in the data set {name}: of its {len(flat)} annotations {fates.crowd.sum()} are crowds, "
            f"and {fates.dropped.sum()} boxes have no width or no height inside their image; correct them"
        )


def shorten(values: Sequence[Any]) -> str:
    """The values as text; the middle of more than 4 is left out."""
    names = list(map(str, values))
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
