"""What an annotation becomes: an object, a crowd, nothing or an error. Mapper, checks and evaluation ask here."""

import logging
import math
import numbers
import os
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from detr.data.boxes import boxes_to_xyxy, clip_boxes, has_area
from detr.data.images import size_in_file
from detr.errors import InputError

logger = logging.getLogger(__name__)

PATH = re.compile(r"[^\0-\x1f]{1,1024}")  # what a message shows in one line
ABSOLUTE = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
RELATIVE = {BoxMode.XYXY_REL: BoxMode.XYXY_ABS, BoxMode.XYWH_REL: BoxMode.XYWH_ABS}
LARGEST_LABEL = 2**31  # no integer of a larger size fits into every array
MOST_PIXELS = 2**31 - 1  # of an image; pycocotools counts those of a mask in 32 bits
REACH = 10  # how many times the image's larger side a coordinate may come to


class Fates(NamedTuple):
    """What becomes of M annotations; those that are neither ``crowd`` nor ``dropped`` are objects.

    boxes: (M, 4) float32, xyxy in pixels, inside the image
    crowd: (M,) bool, not learned, and detections on it are neither right nor wrong
    dropped: (M,) bool, neither learned nor evaluated, since no width or no height is inside the image
    """

    boxes: np.ndarray
    crowd: np.ndarray
    dropped: np.ndarray

    @property
    def objects(self) -> np.ndarray:
        """(M,) bool."""
        return ~(self.crowd | self.dropped)


def decide(annotations: Sequence[dict[str, Any]], height: Any, width: Any) -> Fates:
    """
    annotations: M clean ones
    height, width: of the image in pixels, or (M,) arrays with those of each annotation's image
    """
    boxes = clip_boxes(boxes_to_xyxy(annotations), height, width)
    crowd = np.array([bool(obj.get("iscrowd", 0)) for obj in annotations], dtype=bool)
    return Fates(boxes, crowd, ~crowd & ~has_area(boxes))


def flatten(dicts: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray, np.ndarray]:
    """All M annotations of clean dicts, and of each the index of its image and that one's height and width, (M,)."""
    flat = list(chain.from_iterable(x.get("annotations", ()) for x in dicts))
    counts = [len(x.get("annotations", ())) for x in dicts]
    height, width = (np.repeat([size_of(x)[i] for x in dicts], counts) for i in (0, 1))
    return flat, np.repeat(np.arange(len(dicts)), counts), height, width


def clean_dicts(dicts: Sequence[dict[str, Any]], name: str = "") -> list[dict[str, Any]]:
    """Dataset dicts with the fields of every image and annotation in one type (see ``clean_image``).

    name: of the data set, for messages

    Sizes that are missing come from the headers of the files, where these can be opened. The dicts that are given
    stay as they are. Raises InputError that names the first bad image.
    """
    images = [clean_image(x, f"image {i} of the data set {name}".strip()) for i, x in enumerate(dicts)]
    for x in images:
        _add_size(x)
    flat, _, height, width = flatten(images)
    if _all_clean(flat, height, width):
        return images
    unusable: list[str] = []
    for x in filter(lambda x: "annotations" in x, images):
        annotations = clean_annotations(x["annotations"], size_of(x), x["file_name"])
        unusable += [x["file_name"]] * (len(x["annotations"]) - len(annotations))
        x["annotations"] = annotations
    if unusable:
        logger.warning(
            "%s: %d crowds are left out, because they have no box in the image or no class; the first is in %s",
            name or "a data set",
            len(unusable),
            unusable[0],
        )
    return images


def clean_image(x: dict[str, Any], where: str = "an image") -> dict[str, Any]:
    """A copy with ``file_name`` as text, ``height`` and ``width`` as int where they are known, and its annotations.

    Paths, and whole numbers written as floats or text, have one reading; None and a missing key mean unknown for a
    size and none for annotations. The annotations themselves are left as they are. Raises InputError.
    """
    if not isinstance(x, dict):
        raise InputError(f"{where} is a {type(x).__name__}: it must be a dict in Detectron2's format")
    x = dict(x)
    name = x.get("file_name")
    if not isinstance(name, (str, os.PathLike)) or not PATH.fullmatch(str(name)):
        raise InputError(f"{where} has the file_name {shown(name)}: it must be the path of an image")
    x["file_name"] = name = os.fspath(name)
    for key in ("height", "width"):
        value = x.pop(key, None)
        if value is None:
            continue
        number = as_whole_number(value)
        if number is None or not 1 <= number < 2**31:
            raise InputError(f"{name} has the {key} {shown(value)}: it must be a number of pixels, at least 1")
        x[key] = number
    if x.get("height", 1) * x.get("width", 1) > MOST_PIXELS:
        raise InputError(
            f"{name} has the height {x['height']} and the width {x['width']}: an image must have less than 2**31 pixels"
        )
    x.setdefault("segments_info" if "segments_info" in x else "annotations", None)
    for key in {"segments_info", "annotations"} & x.keys():
        values = x[key]
        if not isinstance(values, (list, tuple, type(None))):
            raise InputError(f"{name} has {key!r} that are a {type(values).__name__}: they must be a list")
        x[key] = list(values or ())
    return x


def _add_size(x: dict[str, Any]) -> None:
    if ("height" in x and "width" in x) or "://" in x["file_name"] or "annotations" not in x:
        return
    size = size_in_file(x["file_name"])
    if size is not None:
        x.setdefault("width", size[0])
        x.setdefault("height", size[1])


def size_of(x: dict[str, Any]) -> tuple[float, float]:
    """(height, width) of a clean image in pixels; infinite where it is unknown."""
    return x.get("height", math.inf), x.get("width", math.inf)


def clean_annotations(
    annotations: Sequence[dict[str, Any]], size: tuple[float, float], where: str
) -> list[dict[str, Any]]:
    """The annotations with ``bbox`` in pixels, ``category_id`` int and ``iscrowd`` 0 or 1; other keys stay.

    size: (height, width) of the image, by which relative boxes are multiplied
    where: the image's file name, for the message

    Raises InputError for an annotation without a box of 4 finite numbers, with a coordinate of more than 10 times the
    image's larger side, an unknown ``bbox_mode``, or a ``category_id`` or ``iscrowd`` that has no reading. A crowd
    without a box or a class is left out, since neither training nor evaluation needs it.
    """
    cleaned = []
    for obj in annotations:
        is_crowd = _read_iscrowd(obj, where)
        try:
            cleaned.append(_clean_annotation(obj, is_crowd, size, where))
        except InputError:
            if not is_crowd:
                raise
    return cleaned


def check_labels(annotations: Sequence[dict[str, Any]], num_classes: int, where: str) -> None:
    """Raises InputError for a category id outside [0, num_classes); where: the image's file name."""
    for obj in annotations:
        label = obj["category_id"]
        if not isinstance(label, (int, np.integer)) or not 0 <= label < num_classes:
            raise InputError(
                f"{where} has an object of category {shown(label)}, outside [0, {num_classes}): set "
                "MODEL.DETR.NUM_CLASSES to the data set's number of classes, and map its ids to 0, 1, 2, ... "
                "when it is registered"
            )


def as_whole_number(value: Any) -> int | None:
    """The integer that a number or a text of digits stands for; None where it stands for none."""
    if isinstance(value, str) and value.strip().lstrip("+-").isdecimal() and len(value) < 20:
        return int(value)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        return None
    number = value_as_float(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    return int(number) if number.is_integer() else None


def value_as_float(value: Any) -> float:
    """Infinite for an integer that no float can hold."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def shown(value: Any) -> str:
    """The value as a message shows it: short, and text in quotes."""
    try:
        text = repr(value.item() if isinstance(value, np.generic) else value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:50]}..."


def _read_iscrowd(obj: Any, where: str) -> int:
    if not isinstance(obj, dict):
        raise InputError(f"{where} has an annotation that is a {type(obj).__name__}: it must be a dict")
    crowd = obj.get("iscrowd")
    number = 0 if crowd is None else int(crowd) if isinstance(crowd, (bool, np.bool_)) else as_whole_number(crowd)
    if number not in (0, 1):
        raise InputError(f"{where} has an object with the iscrowd {shown(crowd)}: it must be 0 or 1")
    return number


def _clean_annotation(obj: dict[str, Any], is_crowd: int, size: tuple[float, float], where: str) -> dict[str, Any]:
    for key in ("bbox", "bbox_mode", "category_id"):
        if key not in obj:
            raise InputError(f"{where} has an object without {key!r}: every object needs one")
    obj = dict(obj)
    obj["bbox"], obj["bbox_mode"] = _clean_box(obj["bbox"], obj["bbox_mode"], size, where)
    label = as_whole_number(obj["category_id"])
    if label is None or isinstance(obj["category_id"], str) or abs(label) >= LARGEST_LABEL:
        raise InputError(
            f"{where} has an object with the category_id {shown(obj['category_id'])}: it must be an integer, and "
            "below 2**31"
        )
    obj["category_id"] = label
    obj["iscrowd"] = is_crowd
    return obj


def _clean_box(box: Any, mode: Any, size: tuple[float, float], where: str) -> tuple[list[float], BoxMode]:
    if isinstance(box, np.ndarray):
        box = box.tolist()
    values = list(box) if isinstance(box, (list, tuple)) else []
    are_numbers = all(isinstance(x, numbers.Real) and not isinstance(x, (bool, np.bool_)) for x in values)
    if len(values) != 4 or not are_numbers or not all(math.isfinite(value_as_float(x)) for x in values):
        raise InputError(f"{where} has an object with the bbox {shown(box)}: it must be 4 finite numbers")
    values = [float(x) for x in values]
    number = None if isinstance(mode, str) else as_whole_number(mode)
    if number not in (*ABSOLUTE, *RELATIVE):
        raise InputError(
            f"{where} has an object with the bbox_mode {shown(mode)}: it must be BoxMode.XYXY_ABS or "
            "BoxMode.XYWH_ABS, or one of their relative counterparts"
        )
    mode, (height, width) = BoxMode(number), size
    if mode in RELATIVE:
        if not math.isfinite(height * width):
            raise InputError(f"{where} has a relative bbox, but no height and width: give them, or boxes in pixels")
        values = [values[0] * width, values[1] * height, values[2] * width, values[3] * height]
    reached = max(map(abs, values))
    if reached > REACH * max(height, width):
        raise InputError(
            f"{where} is {width} x {height} pixels (width x height), but an object has the bbox {shown(box)}: correct "
            "its annotation"
        )
    return values, RELATIVE.get(mode, mode)


def _all_clean(annotations: Sequence[dict[str, Any]], height: np.ndarray, width: np.ndarray) -> bool:
    """Whether ``clean_annotations`` would change nothing; False also where arrays cannot tell."""
    try:
        boxes, modes, labels = ([obj[key] for obj in annotations] for key in ("bbox", "bbox_mode", "category_id"))
        crowd = [obj.get("iscrowd", 0) for obj in annotations]
        # Arrays alone would not tell: they make numbers of truth values.
        of_one_type = (
            {*map(type, chain.from_iterable(boxes))} <= {int, float}
            and {*map(type, boxes)} <= {list, tuple}
            and {*map(type, modes)} <= {int, BoxMode}
            and {*map(type, (*labels, *crowd))} <= {int}
        )
        if not of_one_type or not annotations:
            return of_one_type
        values = np.array(boxes, dtype=float)
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
        return False
    return bool(
        values.shape == (len(annotations), 4)
        and np.isfinite(values).all()
        and np.isin(modes, ABSOLUTE).all()
        and {*crowd} <= {0, 1}
        and max(map(abs, labels)) < LARGEST_LABEL
        and (np.abs(values).max(axis=1) <= REACH * np.maximum(height, width)).all()
    )
