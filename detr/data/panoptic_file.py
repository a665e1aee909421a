"""What is wrong with a panoptic JSON that Detectron2's loader cannot read: which entry, and which of its keys."""

from collections.abc import Collection
from typing import Any

from detr.data.annotations import as_whole_number, shown
from detr.data.coco_file import read_lists
from detr.errors import InputError


def check_panoptic_file(path: str, category_ids: Collection[int]) -> None:
    """Raises InputError that names the first entry that is not in COCO's panoptic format.

    category_ids: those that the metadata know
    """
    annotations = read_lists(path, optional="images")["annotations"]
    if not annotations:
        raise InputError(f"{path} has no annotations: list the images' segments there")
    for index, entry in enumerate(annotations):
        where = f"{path}: number {index} of the annotations"
        if as_whole_number(entry.get("image_id")) is None:
            raise InputError(f"{where} has the image_id {shown(entry.get('image_id'))}: it must be a whole number")
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where} has the file_name {shown(name)}: give its PNG's name")
        segments = entry.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
            raise InputError(f"{where} has the segments_info {shown(segments)}: it must be a list of dicts")
        for segment in segments:
            _check_category(where, segment.get("category_id"), category_ids)


def _check_category(where: str, category: Any, known: Collection[int]) -> None:
    if not isinstance(category, int) or category not in known:
        raise InputError(
            f"{where} has a segment with the category_id {shown(category)}, which is in none of the metadata's "
            "thing_ and stuff_dataset_id_to_contiguous_id: correct one of them"
        )
