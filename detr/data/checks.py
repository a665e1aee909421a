"""Checks of registered data sets before training: files, classes, labels and boxes."""

import difflib
import logging
import math
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from detr.data.boxes import BOX_MODES, boxes_to_xyxy, check_objects, clip_boxes, has_area
from detr.data.masks import check_segmentations, has_segmentation
from detr.data.metadata import class_names, is_panoptic
from detr.data.shapes import SHAPES, ensure_shapes
from detr.errors import InputError

logger = logging.getLogger(__name__)


def load_dicts(names: Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """The dicts of all data sets in one list. Their labels are not checked yet.

    Raises InputError where a data set is not registered, its files are missing or damaged, or it is empty.
    """
    for name in names:
        check_registered(name)
        check_files(name)
    try:
        # Detectron2's consistency check fails with a bare assertion on a bad label.
        return list(get_detection_dataset_dicts(list(names), filter_empty=filter_empty, check_consistency=False))
    except InputError:
        raise
    except (AssertionError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        files = ", ".join(_annotation_file(name) for name in names)
        raise InputError(
            f"the data set {', '.join(names)} cannot be loaded ({_reason(error)}): check that its annotations "
            f"({files}) are whole, and that images, annotations and categories refer to each other's ids"
        ) from error


def _annotation_file(name: str) -> str:
    return str(MetadataCatalog.get(name).get("panoptic_json" if is_panoptic(name) else "json_file", "no JSON file"))


def _reason(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    if isinstance(error, AssertionError) and str(detail).endswith((".jpg", ".png")):  # Detectron2's panoptic loader
        return f"{detail} does not exist"
    if isinstance(error, KeyError) and isinstance(detail, int):  # as above
        return f"category {detail} is in none of the metadata's thing_ and stuff_dataset_id_to_contiguous_id"
    return " ".join(f"{type(error).__name__}: {error}".split())


def check_registered(name: str) -> None:
    """Raises InputError for a data set that is not registered, with the nearest names that are."""
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise InputError(
        f"the data set {name!r} is not registered{hint} Register your own before training with "
        "detectron2.data.datasets.register_coco_instances(name, {}, json_file, image_root)"
    )


def check_files(name: str) -> None:
    """Raises InputError where the annotation file or the image folder of a registered set is missing."""
    if name in SHAPES:
        ensure_shapes()  # writes the files on first use
    metadata = MetadataCatalog.get(name)
    panoptic = ("panoptic_json", "panoptic_root") if is_panoptic(name) else ()
    for key in ("json_file", "image_root", *panoptic):
        path = metadata.get(key)
        if path and "://" not in path and not os.path.exists(path):
            raise InputError(
                f"the data set {name} is registered, but its {key} {path} does not exist: put the data there, or "
                "point the environment variable DETECTRON2_DATASETS at the folder that holds it"
            )


def check_classes(name: str, num_classes: int) -> None:
    """Raises InputError where ``num_classes`` is not the data set's number of classes.

    The classes of a panoptic set are things and stuff together; their ids are checked too.
    """
    if is_panoptic(name):
        _check_panoptic_ids(name)
    classes = class_names(name)
    if classes is None:
        return
    if len(classes) != num_classes:
        raise InputError(
            f"MODEL.DETR.NUM_CLASSES is {num_classes}, but the data set {name} has {len(classes)} classes "
            f"({shorten(classes)}): set MODEL.DETR.NUM_CLASSES {len(classes)}"
        )
    logger.info("%s: %d classes, 0 = %s ... %d = %s", name, num_classes, classes[0], num_classes - 1, classes[-1])


def _check_panoptic_ids(name: str) -> None:
    """Raises InputError where things and stuff are not numbered as the mapper and the evaluators need them."""
    metadata = MetadataCatalog.get(name)
    things, stuff = (
        sorted((metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}).values()) for kind in ("thing", "stuff")
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


def check_dicts(dicts: Sequence[dict[str, Any]], num_classes: int, num_queries: int, masks: bool = False) -> None:
    """Checks labels, boxes, segmentations and numbers of objects of a training set.

    masks: whether every object needs a segmentation

    Raises InputError that names the first bad image. Logs one warning for degenerate boxes (the mapper drops
    them) and one for images with more objects than queries (the surplus cannot be learned).
    """
    objects = [[obj for obj in x.get("annotations", ()) if not obj.get("iscrowd", 0)] for x in dicts]
    flat = list(chain.from_iterable(objects))
    if not flat:
        raise InputError("the training data sets have no object at all: check the annotations of their files")
    if not _all_valid(flat, num_classes, masks):
        for x, annotations in zip(dicts, objects, strict=True):
            check_objects(annotations, num_classes, x["file_name"])
            if masks:
                check_segmentations(annotations, x["file_name"])
    numbers = np.array([len(annotations) for annotations in objects])
    height, width = (np.repeat([x.get(key, math.inf) for x in dicts], numbers) for key in ("height", "width"))
    degenerate = ~has_area(clip_boxes(boxes_to_xyxy(flat), height, width))
    images = np.repeat(np.arange(len(dicts)), numbers)[degenerate]
    if len(images):
        logger.warning(
            "%d degenerate boxes (no width or no height inside the image) are dropped; the first is in %s",
            len(images),
            dicts[images[0]]["file_name"],
        )
    numbers -= np.bincount(images, minlength=len(dicts))
    warn_of_surplus(dicts, numbers.tolist(), num_queries)


def _all_valid(objects: Sequence[dict[str, Any]], num_classes: int, masks: bool) -> bool:
    """Whether ``check_objects`` and ``check_segmentations`` accept all objects; False also where arrays cannot tell."""
    try:
        boxes, modes, labels = (np.array([obj[k] for obj in objects]) for k in ("bbox", "bbox_mode", "category_id"))
    except (KeyError, ValueError, TypeError):
        return False
    return bool(
        all(array.dtype.kind in "iuf" for array in (boxes, modes, labels))
        and boxes.shape == (len(objects), 4)
        and np.isfinite(boxes).all()
        and np.isin(modes, BOX_MODES).all()
        and ((labels >= 0) & (labels < num_classes)).all()
        and (not masks or all(map(has_segmentation, objects)))
    )


def warn_of_surplus(dicts: Sequence[dict[str, Any]], numbers: Sequence[int], num_queries: int) -> None:
    """Logs a warning for images with more objects than queries; numbers: how many objects each image has."""
    crowded = [(number, x["file_name"]) for number, x in zip(numbers, dicts, strict=True) if number > num_queries]
    if crowded:
        most, where = max(crowded)
        logger.warning(
            "%d images have more objects than the %d queries, up to %d in %s: the surplus is not learned; raise "
            "MODEL.DETR.NUM_OBJECT_QUERIES",
            len(crowded),
            num_queries,
            most,
            where,
        )


def shorten(values: Sequence[Any]) -> str:
    """The values as text; the middle of more than 4 is left out."""
    names = list(map(str, values))
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
