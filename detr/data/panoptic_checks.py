"""Checks of panoptic data sets before training and evaluation, beside ``checks``."""

import json
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from detr.data.boxes import check_labels
from detr.data.checks import shorten, warn_of_surplus
from detr.data.masks import check_segmentations
from detr.errors import InputError


def check_segments(dicts: Sequence[dict[str, Any]], num_classes: int, num_queries: int) -> None:
    """As ``check_dicts``, for a panoptic training set. The PNGs are left to ``check_images`` and the mapper."""
    if not any(x.get("segments_info") for x in dicts):
        raise InputError("the training data sets have no segment at all: check the annotations of their files")
    for x in dicts:
        for key in ("pan_seg_file_name", "segments_info"):
            if key not in x:
                raise InputError(f"{x['file_name']} has no {key!r}: every image of a panoptic set needs one")
        for key in ("id", "category_id"):
            if any(key not in segment for segment in x["segments_info"]):
                raise InputError(f"{x['file_name']} has a segment without {key!r}: every segment needs one")
        check_labels(x["segments_info"], num_classes, x["file_name"])
    warn_of_surplus(dicts, [len(x["segments_info"]) for x in dicts], num_queries)


def check_panoptic_truth(name: str, dicts: Sequence[dict[str, Any]], *, masks: bool, maps: bool) -> None:
    """Checks what the evaluators of a panoptic set read from its JSON files.

    dicts: the set's dataset dicts
    masks: whether instance masks are evaluated
    maps: whether panoptic maps are evaluated

    Raises InputError where a file's categories differ from the metadata's, a segmentation or an ``iscrowd`` is
    missing, or PQ is undefined.
    """
    if MetadataCatalog.get(name).get("json_file"):
        _check_instances(name, masks)
    if maps:
        _check_maps(name, dicts)


def _check_instances(name: str, masks: bool) -> None:
    metadata = MetadataCatalog.get(name)
    path = metadata.json_file
    content = _read_json(name, path)
    known = metadata.thing_dataset_id_to_contiguous_id
    _check_categories(name, path, set(known), {c["id"] for c in content.get("categories", [])})
    if masks:
        files = {image["id"]: image["file_name"] for image in content.get("images", [])}
        for annotation in content.get("annotations", []):
            check_segmentations([annotation], f"{files.get(annotation['image_id'])} (in {path})")


def _check_maps(name: str, dicts: Sequence[dict[str, Any]]) -> None:
    metadata = MetadataCatalog.get(name)
    path = metadata.panoptic_json
    for x in dicts:
        if any("iscrowd" not in segment for segment in x["segments_info"]):
            raise InputError(f"{x['file_name']} has a segment without 'iscrowd' in {path}: PQ needs it")
    categories = _read_json(name, path).get("categories", [])
    for kind, isthing in (("thing", True), ("stuff", False)):
        known = metadata.get(f"{kind}_dataset_id_to_contiguous_id")
        found = {c["id"] for c in categories if bool(c.get("isthing")) == isthing}
        _check_categories(f"{name} ({kind})", path, set(known), found)
        classes = set(known.values())
        # panopticapi divides by the number of classes that it meets.
        if not any(s["category_id"] in classes and not s["iscrowd"] for x in dicts for s in x["segments_info"]):
            raise InputError(
                f"{path} has no {kind} segment but crowds, so that its PQ is not defined: evaluate on a larger set, or "
                "set MODEL.DETR.PANOPTIC.ENABLED False"
            )


def _check_categories(name: str, path: str, known: set[int], found: set[int]) -> None:
    if known != found:
        raise InputError(
            f"{path} of the data set {name} has categories with the ids {shorten(sorted(found))}, but its metadata "
            f"{shorten(sorted(known))}: correct *_dataset_id_to_contiguous_id or the file"
        )


def _read_json(name: str, path: str) -> dict[str, Any]:
    try:
        with PathManager.open(path) as file:
            return json.load(file)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} of the data set {name} cannot be read ({error}): restore the file") from error
