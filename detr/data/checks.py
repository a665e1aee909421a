"""What a data set is held to before any training time is spent."""

import difflib
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from detectron2.utils import comm
from PIL import Image

from detr.data.dataset_mapper import check_labels, size_problem
from detr.data.masks import check_segmentations
from detr.data.metadata import class_names, is_panoptic
from detr.data.panoptic_mapper import png_size_problem
from detr.data.shapes import SHAPES, ensure_shapes
from detr.errors import InputError

EXIF_ORIENTATION = 0x0112  # tag; the values 5 to 8 turn an image by 90 degrees

logger = logging.getLogger(__name__)


def load_dicts(names: Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """The dataset dicts of all the sets together, their labels not looked at yet.

    Raises InputError where a data set is not registered, its files are missing or damaged, or it is empty.
    """
    for name in names:
        check_registered(name)
        check_files(name)
    try:
        # The consistency check would meet a bad label with a bare assertion.
        return list(get_detection_dataset_dicts(list(names), filter_empty=filter_empty, check_consistency=False))
    except InputError:
        raise
    except (AssertionError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        files = ", ".join(_annotation_file(name) for name in names)
        raise InputError(
            f"the data set {', '.join(names)} cannot be loaded ({reason_of(error)}): check that its annotations "
            f"({files}) are whole, and that images, annotations and categories refer to each other's ids"
        ) from error


def _annotation_file(name: str) -> str:
    return str(MetadataCatalog.get(name).get("panoptic_json" if is_panoptic(name) else "json_file", "no JSON file"))


def reason_of(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    if isinstance(error, AssertionError) and str(detail).endswith((".jpg", ".png")):  # Detectron2 on panoptic sets
        return f"{detail} does not exist"
    if isinstance(error, KeyError) and isinstance(detail, int):  # likewise
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
        ensure_shapes()  # written when it is first asked for
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
    """Raises InputError where NUM_CLASSES is not the data set's number of classes.

    Those of a panoptic set are things and stuff together; its ids are checked as well.
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
    """What the mapper, the panoptic maps and both evaluators rest on. Raises InputError."""
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
        f"metadata's *_dataset_id_to_contiguous_id, and {len(classes)} stuff_classes: Detr wants things as 0, 1, ..., "
        "stuff after them, and the names of both in stuff_classes"
        + (f", which {name.removesuffix('_separated')} has" if separated else "")
    )


def check_same_classes(names: Sequence[str]) -> None:
    """Raises InputError where the data sets name or order their classes differently: AP would be near 0."""
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
    """Raises InputError where only some of the data sets are panoptic: their dicts hold different things."""
    panoptic = [name for name in names if is_panoptic(name)]
    if panoptic and len(panoptic) < len(names):
        other = next(name for name in names if name not in panoptic)
        raise InputError(
            f"DATASETS.TRAIN has {panoptic[0]}, which is panoptic, and {other}, which is not: train on one kind"
        )


def check_dicts(dicts: Sequence[dict[str, Any]], num_classes: int, num_queries: int, masks: bool = False) -> None:
    """Labels, boxes, segmentations and numbers of objects of a training set.

    masks: whether every object needs a segmentation

    Raises InputError for a label outside [0, num_classes). Warns, once each, of degenerate boxes (which
    the mapper drops) and of images with more objects than queries (the surplus cannot be learned).
    """
    if not any(not obj.get("iscrowd", 0) for x in dicts for obj in x.get("annotations", [])):
        raise InputError("the training data sets have no object at all: check the annotations of their files")
    degenerate: list[str] = []
    numbers: list[int] = []
    for x in dicts:
        annotations = [obj for obj in x.get("annotations", []) if not obj.get("iscrowd", 0)]
        for key in ("bbox", "bbox_mode", "category_id"):
            if any(key not in obj for obj in annotations):
                raise InputError(f"{x['file_name']} has an object without {key!r}: every object needs one")
        for obj in annotations:
            if not _is_box(obj["bbox"]):
                raise InputError(
                    f"{x['file_name']} has an object with the bbox {obj['bbox']}: it must be 4 finite numbers"
                )
        check_labels(annotations, num_classes, x["file_name"])
        if masks:
            check_segmentations(annotations, x["file_name"])
        dropped = sum(_is_degenerate(obj, x) for obj in annotations)
        degenerate += [x["file_name"]] * dropped
        numbers.append(len(annotations) - dropped)
    if degenerate:
        logger.warning(
            "%d degenerate boxes (no width or no height inside the image) are dropped; the first is in %s",
            len(degenerate),
            degenerate[0],
        )
    warn_of_surplus(dicts, numbers, num_queries)


def warn_of_surplus(dicts: Sequence[dict[str, Any]], numbers: Sequence[int], num_queries: int) -> None:
    """numbers: of objects to learn in each of the images."""
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


def check_images(dicts: Sequence[dict[str, Any]], panoptic: bool = False) -> None:
    """Every image is there, and its header tells the size that the data set claims.

    panoptic: whether every image has a panoptic PNG, which must be there too, and of the image's size

    Raises InputError that names the first bad file, on all ranks. Only the headers are read, by the main
    process; a JPEG without an end marker is decoded whole.
    """
    problem = None
    if comm.is_main_process():
        start = time.perf_counter()
        problem = _first_problem(dicts, panoptic)
        logger.info("Checked the headers of %d images in %.1f s", len(dicts), time.perf_counter() - start)
    problem = comm.all_gather(problem)[0]
    if problem:
        raise InputError(problem)


def _first_problem(dicts: Sequence[dict[str, Any]], panoptic: bool) -> str | None:
    for kind, key in (("image", "file_name"), *([("panoptic PNG", "pan_seg_file_name")] if panoptic else [])):
        missing = list(_missing(x[key] for x in dicts))
        if missing:
            more = f" (and {len(missing) - 1} more of {len(dicts)})" if len(missing) > 1 else ""
            return (
                f"the {kind} {missing[0]} does not exist{more}: restore it, or point DETECTRON2_DATASETS at the folder "
                "that holds the data set"
            )
    with ThreadPoolExecutor(8) as pool:  # waiting for a file, not computing
        problems = pool.map(partial(_header_problem, panoptic=panoptic), dicts)
        return next(filter(None, problems), None)


def _missing(paths: Iterable[str]) -> Iterable[str]:
    """The local paths that do not exist, with one listing a folder rather than one question a file."""
    by_folder = defaultdict(list)
    for path in paths:
        if "://" not in path:
            by_folder[os.path.dirname(path)].append(path)
    for folder, members in by_folder.items():
        present = {entry.name for entry in os.scandir(folder or ".")} if os.path.isdir(folder or ".") else set()
        yield from (path for path in members if os.path.basename(path) not in present)


def _header_problem(x: dict[str, Any], panoptic: bool) -> str | None:
    path = x["file_name"]
    if "://" in path:
        return None  # not worth a download; the mapper checks it when it is read
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
                width, height = height, width
            if image.format == "JPEG" and not _ends_as_jpeg(path):
                image.load()  # perhaps cut off: decoding tells
        problem = size_problem(x, width, height)
        if problem or not panoptic:
            return problem
        path = x["pan_seg_file_name"]
        with Image.open(path) as png:
            return png_size_problem(x, png.size, (width, height))
    except Exception as error:  # PIL raises many kinds for broken files
        reason = str(error).replace(repr(path), "").strip()
        return f"cannot read the image {path} ({reason}): restore the file or take it out of the annotations"


def _ends_as_jpeg(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"  # the end-of-image marker


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and all(math.isfinite(value) for value in box)
    except TypeError:
        return False


def _is_degenerate(annotation: dict[str, Any], x: dict[str, Any]) -> bool:
    x1, y1, x2, y2 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
    width, height = x.get("width", math.inf), x.get("height", math.inf)
    return not (min(x2, width) > max(x1, 0) and min(y2, height) > max(y1, 0))


def shorten(values: Sequence[Any]) -> str:
    names = list(map(str, values))
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, {names[1]}, ..., {names[-1]}"
