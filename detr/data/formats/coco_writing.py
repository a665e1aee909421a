"""Detectron2's dataset dicts as a file in COCO's format."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from detr.data.annotations import check_labels, clean_dicts, size_of
from detr.data.masks import encode, has_segmentation
from detr.errors import InputError


def write_coco(dicts: Sequence[dict[str, Any]], class_names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Writes a file that ``register_coco_instances(name, {}, path, folder of path)`` reads as the same data set.

    dicts: Detectron2's, whose ``image_id`` are kept where all are different; class_names: by their contiguous ids
    path: of the file; images below its folder are named relative to it, others by their absolute paths
    Segmentations that cannot be read are left out.

    Raises InputError for dicts that cannot be read (see ``clean_dicts``), a class without a name, an image of unknown
    size, and where the file cannot be written.
    """
    path = Path(os.path.abspath(path))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    cleaned = clean_dicts(dicts)
    for image_id, x in zip(_image_ids(cleaned), cleaned, strict=True):
        name = x["file_name"]
        if not np.isfinite(sum(size_of(x))):
            raise InputError(f"{name} has no height and width, and cannot be opened: restore the file")
        check_labels(x["annotations"], len(class_names), name)
        where = Path(os.path.abspath(name))
        relative = where.relative_to(path.parent) if where.is_relative_to(path.parent) else where
        images.append({"id": image_id, "file_name": relative.as_posix(), "height": x["height"], "width": x["width"]})
        for obj in x["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(obj, x)})
    content = {
        "images": images,
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(class_names)],
        "annotations": annotations,
    }
    unfinished = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(content))
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}): choose a folder that is writable") from error


def _image_ids(images: Sequence[dict[str, Any]]) -> list[Any]:
    """Their own ids where all have one of their own, else numbers from 0."""
    ids = [x.get("image_id") for x in images]
    return list(range(len(images))) if None in ids or len(set(ids)) < len(ids) else ids


def _annotation(obj: Mapping[str, Any], x: dict[str, Any]) -> dict[str, Any]:
    x1, y1, a, b = obj["bbox"]
    # Not by BoxMode.convert, which rounds to float32.
    box = [x1, y1, a, b] if obj["bbox_mode"] == BoxMode.XYWH_ABS else [x1, y1, a - x1, b - y1]
    annotation = {"category_id": obj["category_id"] + 1, "bbox": box, "iscrowd": obj["iscrowd"]}
    area = box[2] * box[3]
    if has_segmentation(dict(obj)):
        with contextlib.suppress(InputError):  # a training of boxes does not need it
            rle = encode(obj["segmentation"], size_of(x), x["file_name"])
            area = float(mask_util.area(rle))
            annotation["segmentation"] = _as_json(obj["segmentation"], rle)
    annotation["area"] = obj.get("area", area)
    return annotation


def _as_json(segmentation: Any, rle: Mapping[str, Any]) -> Any:
    """The segmentation as it is where JSON can hold it, else as an RLE."""
    try:
        json.dumps(segmentation)
    except TypeError:  # arrays and bytes
        return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}
    return segmentation
