"""Checks of panoptic data sets before training and evaluation, beside ``checks``."""

import os
from collections.abc import Sequence
from types import NoneType
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from detr.data.annotations import PATH, as_whole_number, check_labels, shown
from detr.data.checks import shorten
from detr.data.coco_file import as_id, class_ids, read_coco, read_lists
from detr.data.ground_truth import check_same_images, load_truth
from detr.errors import InputError


def check_segments(dicts: Sequence[dict[str, Any]], num_classes: int, name: str = "") -> None:
    """As ``check_dicts``, for a panoptic set. The PNGs are left to ``check_images`` and the mapper."""
    if not any(x.get("segments_info") for x in dicts):
        raise InputError(f"the panoptic training or test set {name} has no segment at all: check its annotations")
    for x in dicts:
        where = x["file_name"]
        for key in ("pan_seg_file_name", "segments_info"):
            if x.get(key) is None:
                raise InputError(f"{where} has no {key!r}: every image of a panoptic set needs one")
        if not isinstance(x["pan_seg_file_name"], (str, os.PathLike)) or not PATH.fullmatch(
            str(x["pan_seg_file_name"])
        ):
            raise InputError(f"{where} has the pan_seg_file_name {shown(x['pan_seg_file_name'])}: it must be a path")
        x["pan_seg_file_name"] = os.fspath(x["pan_seg_file_name"])
        for segment in x["segments_info"]:
            for key in ("id", "category_id"):
                if not isinstance(segment, dict) or key not in segment:
                    raise InputError(f"{where} has a segment without {key!r}: every segment needs one")
            number = None if isinstance(segment["id"], str) else as_whole_number(segment["id"])
            if number is None or not 0 < number < 256**3:
                raise InputError(
                    f"{where} has a segment with the id {shown(segment['id'])}: it must be an integer from 1 to "
                    f"{256**3 - 1}, the color of its pixels"
                )
            crowd = segment.get("iscrowd")
            if not isinstance(crowd, (bool, np.bool_, NoneType)) and as_whole_number(crowd) not in (0, 1):
                raise InputError(f"{where} has a segment with the iscrowd {shown(crowd)}: it must be 0 or 1")
        ids = [segment["id"] for segment in x["segments_info"]]
        if len(set(ids)) < len(ids):
            twice = next(value for value in ids if ids.count(value) > 1)
            raise InputError(f"{where} has two segments with the id {twice}: give every segment its own color")
        check_labels(x["segments_info"], num_classes, where)


def check_panoptic_truth(name: str, dicts: Sequence[dict[str, Any]], *, masks: bool, maps: bool) -> None:
    """Checks what the evaluators of a panoptic set read from its JSON files.

    dicts: the set's dataset dicts
    masks: whether instance masks are evaluated
    maps: whether panoptic maps are evaluated

    Raises InputError where a file's categories differ from the metadata's, a segmentation or an ``iscrowd`` is
    missing, or PQ is undefined.
    """
    if MetadataCatalog.get(name).get("json_file"):
        _check_instances(name, dicts, masks)
    if maps:
        _check_maps(name, dicts)


def _check_instances(name: str, dicts: Sequence[dict[str, Any]], masks: bool) -> None:
    metadata = MetadataCatalog.get(name)
    known = metadata.thing_dataset_id_to_contiguous_id
    _check_categories(name, metadata.json_file, set(known), set(class_ids(read_coco(metadata.json_file))))
    check_same_images(name, dicts, load_truth(name, masks))


def _check_maps(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    metadata = MetadataCatalog.get(name)
    path = metadata.panoptic_json
    content = read_lists(path, optional="")
    for kind in ("images", "categories"):
        for index, entry in enumerate(content[kind]):
            entry["id"] = as_id(entry.get("id"), f"{path}: number {index} of the {kind} has the id")
    _check_maps_of_images(name, dicts, content["annotations"])
    categories = content["categories"]
    for kind, isthing in (("thing", True), ("stuff", False)):
        known = metadata.get(f"{kind}_dataset_id_to_contiguous_id")
        found = {c.get("id") for c in categories if c.get("isthing") == isthing}
        _check_categories(f"{name} ({kind})", path, set(known), found)
        classes = set(known.values())
        # panopticapi divides by the number of classes that it meets.
        if not any(s["category_id"] in classes and not s["iscrowd"] for x in dicts for s in x["segments_info"]):
            raise InputError(
                f"{path} has no {kind} segment but crowds, so that its PQ is not defined: evaluate on a larger set, or "
                "set MODEL.DETR.PANOPTIC.ENABLED False"
            )


def _check_maps_of_images(name: str, dicts: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]]) -> None:
    """annotations: of the ``panoptic_json``"""
    path = MetadataCatalog.get(name).panoptic_json
    where = f"{path}: number {{}} of the annotations has the image_id"
    segments = {as_id(x.get("image_id"), where.format(i)): x["segments_info"] for i, x in enumerate(annotations)}
    if differing := segments.keys() ^ {x["image_id"] for x in dicts}:
        raise InputError(
            f"the image with the id {shown(min(differing, key=str))} is not both in the data set {name} and in {path}: "
            "both must be of the same images, with whole numbers as ids"
        )
    for x in dicts:
        if any("iscrowd" not in segment for segment in segments[x["image_id"]]):
            raise InputError(f"{x['file_name']} has a segment without 'iscrowd' in {path}: PQ needs it")
    names: dict[str, str] = {}
    for x in dicts:
        other = names.setdefault(os.path.splitext(os.path.basename(x["file_name"]))[0], x["file_name"])
        if other != x["file_name"]:
            raise InputError(
                f"{other} and {x['file_name']} of the data set {name} have one name, by which the evaluation of PQ "
                "keeps its maps: rename one of them"
            )


def _check_categories(name: str, path: str, known: set[int], found: set[int]) -> None:
    if known != found:
        raise InputError(
            f"{path} of the data set {name} has categories with the ids {shorten(sorted(found, key=str))}, but its "
            f"metadata {shorten(sorted(known))}: correct *_dataset_id_to_contiguous_id or the file"
        )
