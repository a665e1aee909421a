"""Files in COCO's instances format: read, checked in one pass, and turned into Detectron2's dataset dicts."""

import json
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n

from detr.data.annotations import as_whole_number, shown
from detr.data.images import check_regular
from detr.errors import InputError

Content = dict[str, Any]

LARGEST_ID = 2**63  # numpy has no integers from here on, and rounds them


def read_json(path: str) -> Any:
    """A JSON file's content. Raises InputError where it cannot be read."""
    check_regular(path)
    try:
        with PathManager.open(path) as file:
            return json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({type(error).__name__}: {error}): restore the file"
        ) from error


def read_lists(path: str, optional: str = "annotations") -> Content:
    """A JSON file's content that holds lists of images, categories and annotations; the ``optional`` may be missing.

    Raises InputError otherwise.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}: COCO's format is a dict with images and categories")
    for kind in ("images", "categories", "annotations"):
        entries = content.get(kind)
        if kind == optional and kind not in content:
            continue
        if not isinstance(entries, list):
            raise InputError(f"{path} has {kind} {shown(entries)}: it must be a list of dicts")
        if not {*map(type, entries)} <= {dict}:
            index = next(i for i, entry in enumerate(entries) if not isinstance(entry, dict))
            raise InputError(f"{path}: number {index} of the {kind} is {shown(entries[index])}: it must be a dict")
    return content


def read_coco(path: str) -> Content:
    """The content of a file in COCO's instances format, whose parts refer to each other by ids that are unique.

    Ids are integers or text, of one type each; whole numbers that were written as floats become integers.
    ``annotations`` may be missing, as in a test set. Raises InputError that names the first offender.
    """
    content = read_lists(path)
    ids = {kind: _check_ids(path, kind, content[kind]) for kind in ("images", "categories")}
    annotations = content.get("annotations", [])
    # Nothing but other programs reads the ids of annotations; COCO's minival of 2014 is known to have some twice.
    if any("id" in annotation for annotation in annotations) and "minival" not in str(path):
        _check_ids(path, "annotations", annotations)
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        _check_references(path, annotations, key, ids[kind], kind)
    _mark_ignored(path, annotations)
    _check_names(path, content["categories"])
    return content


def _mark_ignored(path: str, annotations: list[Content]) -> None:
    """Makes crowds of annotations with ``ignore``, in place: COCO's evaluation overwrites it by ``iscrowd``."""
    ignored = [annotation for annotation in annotations if annotation.get("ignore")]
    for annotation in ignored:
        annotation["iscrowd"] = 1
    if ignored:
        text = f"{path}: {len(ignored)} annotations with 'ignore' are crowds: neither learned nor counted as missed"
        log_first_n(logging.WARNING, text, key="message", name=__name__)


def _check_ids(path: str, kind: str, entries: list[Content]) -> set[int | str]:
    """Makes whole numbers integers, in place. Returns the ids."""
    seen: set[int | str] = set()
    first: Any = None
    for index, entry in enumerate(entries):
        value = entry.get("id")
        if type(value) is not int or abs(value) >= LARGEST_ID:
            value = entry["id"] = as_id(value, f"{path}: number {index} of the {kind} has the id")
        first = value if first is None else first
        if type(value) is not type(first):
            raise InputError(
                f"{path}: the {kind} have ids of different types, {shown(first)} and {shown(value)}: give all of them "
                "numbers, or all of them text"
            )
        if value in seen:
            raise InputError(
                f"{path}: the id {shown(value)} occurs more than once in the {kind}; was the file merged from two? "
                "Renumber them, and what refers to them"
            )
        seen.add(value)
    return seen


def _check_references(path: str, annotations: list[Content], key: str, known: set[int | str], kind: str) -> None:
    for index, annotation in enumerate(annotations):
        value = annotation.get(key)
        if type(value) is int and value in known:
            continue
        name = f"annotation {shown(annotation['id'])}" if "id" in annotation else f"number {index} of the annotations"
        value = annotation[key] = as_id(value, f"{path}: {name} has the {key}")
        if value not in known:
            other = str(value) if isinstance(value, int) else as_whole_number(value)
            hint = f", though {shown(other)}, which is of another type," if other in known else ""
            raise InputError(
                f"{path}: {name} has the {key} {shown(value)}, which is no id of the {kind}{hint or ':'} correct it, "
                f"or add what is missing to the {kind}"
            )


def as_id(value: Any, what: str) -> int | str:
    """The id with a type of Python's own. what: the start of the InputError's message for a value that is none."""
    if isinstance(value, str) and value:
        return str(value)
    number = None if isinstance(value, str) else as_whole_number(value)
    if number is None or abs(number) >= LARGEST_ID:
        raise InputError(f"{what} {shown(value)}: it must be a whole number or a text")
    return number


def _check_names(path: str, categories: list[Content]) -> None:
    """Makes numbers text, in place."""
    if not categories:
        raise InputError(f"{path} has no categories: list the classes there")
    for category in categories:
        name = category.get("name")
        if isinstance(name, bool) or not isinstance(name, (str, int, float)) or name == "":
            raise InputError(f"{path}: category {shown(category['id'])} has the name {shown(name)}: give it one")
        category["name"] = str(name)


def class_ids(content: Mapping[str, Any]) -> dict[Any, int]:
    """Category id -> contiguous id, in ascending order of the ids, as Detectron2 numbers them."""
    return {key: index for index, key in enumerate(sorted(category["id"] for category in content["categories"]))}


def coco_dicts(
    content: Content, path: str, image_root: str, contiguous: Mapping[Any, int], extra_keys: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Detectron2's dataset dicts of a content that ``read_coco`` returned, in ascending order of the images' ids.

    As Detectron2's ``load_coco_json``, but every annotation is kept, whatever its segmentation.

    path: of the file, for messages
    contiguous: category id -> contiguous id
    extra_keys: more keys of annotations to copy

    Raises InputError for an image without a file name.
    """
    keys = ("iscrowd", "bbox", "keypoints", "segmentation", *extra_keys)
    by_image: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content.get("annotations", []):
        obj = {key: annotation[key] for key in keys if annotation.get(key) is not None}
        if isinstance(obj.get("keypoints"), list):  # from pixels' indices to their centers, as Detectron2's loader does
            points = enumerate(obj["keypoints"])
            obj["keypoints"] = [x + 0.5 if i % 3 < 2 and isinstance(x, (int, float)) else x for i, x in points]
        obj["category_id"] = contiguous[annotation["category_id"]]
        obj["bbox_mode"] = BoxMode.XYWH_ABS
        by_image[annotation["image_id"]].append(obj)
    dicts = []
    for image in sorted(content["images"], key=lambda image: image["id"]):
        name = image.get("file_name")
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{path}: image {shown(image['id'])} has the file_name {shown(name)}: give its file's name"
            )
        sizes = {key: image.get(key) for key in ("height", "width")}
        where = os.path.join(image_root, name)
        dicts.append({"file_name": where, **sizes, "image_id": image["id"], "annotations": by_image[image["id"]]})
    return dicts
