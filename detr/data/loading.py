"""From the names of registered data sets to clean dataset dicts."""

import difflib
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations

from detr.data.annotations import clean_dicts, shown
from detr.data.coco_file import as_id, class_ids, coco_dicts, read_coco
from detr.data.metadata import is_panoptic
from detr.data.panoptic_file import check_panoptic_file
from detr.data.shapes import SHAPES, ensure_shapes
from detr.errors import InputError


def load_dicts(names: str | Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """The dicts of all data sets (or the one) in one list, as ``load_dataset`` loads them.

    filter_empty: without images that have no object

    Raises InputError as ``load_dataset`` does, and where none is left.
    """
    names = [names] if isinstance(names, str) else names
    dicts = [x for name in names for x in load_dataset(name)]
    if filter_empty and "annotations" in dicts[0]:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if not dicts:
        raise InputError(
            f"no image of the data set {', '.join(names)} has an object: check its annotations, or keep empty images "
            "with DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
        )
    return dicts


def load_dataset(name: str) -> list[dict[str, Any]]:
    """The dicts of a data set, clean (see ``annotations``), each with an ``image_id``, and with the size of its image
    wherever the file can be opened. Labels and segmentations are not checked yet.

    Raises InputError where it is not registered, its files are missing or damaged, its ids are not unique, or it is
    empty.
    """
    check_registered(name)
    check_files(name)
    with _named_errors(name):
        dicts = _coco_dataset(name) if _is_loaded_by_detectron2(name) else list(DatasetCatalog.get(name))
    if not dicts:
        raise InputError(f"the data set {name} is empty: check its annotations ({_annotation_file(name)})")
    return _identified(name, clean_dicts(dicts, name))


def load_as_detectron2(names: Sequence[str], filter_empty: bool) -> list[dict[str, Any]]:
    """The dicts as Detectron2 loads them for other models, whose boxes may be rotated or in keypoints.

    Raises InputError where a data set is not registered, its files are missing or damaged, or it is empty.
    """
    for name in names:
        check_registered(name)
        check_files(name)
    with _named_errors(*names):
        # Detectron2's consistency check fails with a bare assertion on a bad label.
        return list(get_detection_dataset_dicts(list(names), filter_empty=filter_empty, check_consistency=False))


@contextmanager
def _named_errors(*names: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"the data set {', '.join(names)} needs the package {error.name}, which is not installed: pip install "
            f"{error.name}"
        ) from error
    except Exception as error:  # the loader may be the user's own, and raise anything
        for name in filter(_has_panoptic_file, names):
            metadata = MetadataCatalog.get(name)
            ids = [metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {} for kind in ("thing", "stuff")]
            check_panoptic_file(metadata.panoptic_json, {*ids[0], *ids[1]})
        files = ", ".join(map(_annotation_file, names))
        raise InputError(
            f"the data set {', '.join(names)} cannot be loaded ({_reason(error)}): check that its annotations "
            f"({files}) are whole, and that images, annotations and categories refer to each other's ids"
        ) from error


def _has_panoptic_file(name: str) -> bool:
    """Whether Detectron2's loader reads it from a panoptic JSON."""
    return getattr(DatasetCatalog[name], "__module__", "") == "detectron2.data.datasets.coco_panoptic"


def _is_loaded_by_detectron2(name: str) -> bool:
    """Whether ``register_coco_instances`` registered it, whose loader drops objects without a good segmentation."""
    return getattr(DatasetCatalog[name], "__module__", "") == "detectron2.data.datasets.coco"


def _coco_dataset(name: str) -> list[dict[str, Any]]:
    metadata = MetadataCatalog.get(name)
    path = metadata.json_file
    content = read_coco(path)
    names = [category["name"] for category in sorted(content["categories"], key=lambda category: category["id"])]
    known = metadata.get("thing_classes")
    if known is not None and list(known) != names:
        raise InputError(
            f"the data set {name} is registered with the classes {shown(list(known))}, but {path} has {shown(names)} "
            "in the order of their ids: leave thing_classes out, it is read from the file"
        )
    contiguous = class_ids(content)
    mapping = metadata.get("thing_dataset_id_to_contiguous_id")
    if mapping is not None and mapping != contiguous:
        raise InputError(
            f"the data set {name} is registered with the thing_dataset_id_to_contiguous_id {shown(mapping)}, but the "
            f"categories of {path} are {shown(contiguous)} in the order of their ids: leave it out"
        )
    found = {"thing_classes": names, "thing_dataset_id_to_contiguous_id": contiguous}
    metadata.set(**{key: value for key, value in found.items() if metadata.get(key) is None})
    return coco_dicts(content, path, metadata.image_root, contiguous)


def _identified(name: str, dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Adds ``image_id`` where no image has one, counted from 0; in place. Raises InputError for ids of two types."""
    ids = [x.get("image_id") for x in dicts]
    if all(value is None for value in ids):
        for index, x in enumerate(dicts):
            x["image_id"] = index
        return dicts
    for x in dicts:
        if x.get("image_id") is not None:
            x["image_id"] = as_id(x["image_id"], f"{x['file_name']} of the data set {name} has the image_id")
    kind = type(dicts[0].get("image_id"))
    for x in dicts:
        value = x.get("image_id")
        if value is None:
            raise InputError(
                f"{x['file_name']} of the data set {name} has no image_id, and other images have: give all one, or none"
            )
        if type(value) is not kind:
            raise InputError(
                f"{x['file_name']} of the data set {name} has the image_id {shown(value)}, and {dicts[0]['file_name']} "
                f"{shown(ids[0])}: give all images one of the same type"
            )
    return dicts


def check_unique_images(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    """Raises InputError for an ``image_id`` that two images have: an evaluation would mix their objects."""
    seen: dict[Any, str] = {}
    for x in dicts:
        if x["image_id"] in seen:
            raise InputError(
                f"the image_id {shown(x['image_id'])} of the data set {name} occurs more than once, for "
                f"{seen[x['image_id']]} and {x['file_name']}: number the images"
            )
        seen[x["image_id"]] = x["file_name"]


def _annotation_file(name: str) -> str:
    return str(MetadataCatalog.get(name).get("panoptic_json" if is_panoptic(name) else "json_file", "no JSON file"))


def _reason(error: Exception) -> str:
    detail = error.args[0] if error.args else ""
    if isinstance(error, AssertionError) and str(detail).endswith((".jpg", ".png")):  # Detectron2's panoptic loader
        return f"{detail} does not exist"
    if isinstance(error, KeyError) and isinstance(detail, int):  # as above
        return f"category {detail} is in none of the metadata's thing_ and stuff_dataset_id_to_contiguous_id"
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder="...")


def check_registered(name: str) -> None:
    """Raises InputError for a data set that is not registered, with the nearest names that are."""
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    raise InputError(
        f"the data set {name!r} is not registered{hint} Name your own in the config, as in "
        f"DATASETS.REGISTER \"(('{name}', 'PATH'),)\", or register it with detr.register_any(name, path)"
    )


def check_files(name: str) -> None:
    """Raises InputError where the annotation file or the image folder of a registered set is missing."""
    if name in SHAPES:
        ensure_shapes()  # writes the files on first use
    metadata = MetadataCatalog.get(name)
    panoptic = ("panoptic_json", "panoptic_root") if is_panoptic(name) else ()
    for key in ("json_file", "image_root", *panoptic):
        path = metadata.get(key)
        if path and "://" not in str(path) and not os.path.exists(path):
            raise InputError(
                f"the data set {name} is registered, but its {key} {path} does not exist: {path_hint(path)}"
            )


def path_hint(path: str) -> str:
    """What to do where a file or a folder of a registered data set is missing."""
    root = os.environ.get("DETECTRON2_DATASETS", "datasets")  # as Detectron2 registers COCO and others
    if Path(path).absolute().is_relative_to(Path(root).absolute()):
        return f"put the data there, or point the environment variable DETECTRON2_DATASETS, now {root}, at its folder"
    if not os.path.isabs(path):
        return f"relative paths begin in the folder of the command, now {os.getcwd()}; register it with the right path"
    return "restore it, or register the data set with the right path"
