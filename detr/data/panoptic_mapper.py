"""From a panoptic dataset dict to what ``Detr`` takes: every segment, thing or stuff, is an object."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager
from PIL import Image

from detr.data.annotations import check_labels
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.images import check_regular
from detr.errors import InputError

VOID = 0  # the id of pixels that belong to no segment


class DetrPanopticMapper(DetrDatasetMapper):
    """The mapper for dicts with ``pan_seg_file_name`` and ``segments_info``, as those of `coco_2017_train_panoptic`.

    Category ids are contiguous, things and stuff in one space. Crowds are objects like others.
    """

    annotation_keys = ("annotations", "segments_info", "pan_seg_file_name")

    def objects(self, x: dict[str, Any]) -> list[dict[str, Any]]:
        """The segments of ``x`` as ``DetrDatasetMapper.objects`` describes objects, each with its mask.

        Raises InputError that names the file, for a label outside [0, K), a PNG that cannot be read or has another
        size than the image, ids in it that are not in ``segments_info``, or a segment without pixels.
        """
        path, segments = x["pan_seg_file_name"], x["segments_info"]
        check_labels(segments, self.num_classes, x["file_name"])
        ids = read_segment_ids(path)
        problem = png_size_problem(x, png=ids.shape[::-1], image=(x["width"], x["height"]))
        if problem:
            raise InputError(problem)
        masks = segment_masks(x, ids)
        return [
            {
                "bbox": bounds(mask),
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": segment["category_id"],
                "segmentation": mask,
            }
            for mask, segment in zip(masks, segments, strict=True)
        ]


def segment_masks(x: dict[str, Any], ids: np.ndarray) -> list[np.ndarray]:
    """The mask (H, W) bool of each segment of ``x``; ids (H, W): the segment of every pixel.

    Raises InputError that names the PNG, for a segment without pixels and for pixels of a segment that is not listed.
    """
    path, segments = x["pan_seg_file_name"], x["segments_info"]
    masks = [ids == segment["id"] for segment in segments]
    known = ids == VOID
    for mask, segment in zip(masks, segments, strict=True):
        if not mask.any():
            raise InputError(
                f"{path} has no pixel of the segment {segment['id']} that its JSON lists: correct one of them"
            )
        known |= mask
    if not known.all():
        raise InputError(
            f"{path} has pixels of the segments {_shorten(np.unique(ids[~known]).tolist())}, which its JSON does "
            f"not list: correct one of them ({VOID} stands for pixels of no segment)"
        )
    return masks


def read_segment_ids(path: str) -> np.ndarray:
    """The id of every pixel's segment, (H, W) int32, from the colors of a PNG: r + 256 g + 65536 b.

    Raises InputError where the file is missing or damaged.
    """
    try:
        check_regular(path)
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            mode = image.mode
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.int32), -1, 0)
    except InputError:
        raise
    except Exception as error:  # PIL and the path handlers raise many kinds
        raise InputError(
            f"cannot read the panoptic PNG {path} ({type(error).__name__}: {error}): restore the file or take it out "
            "of the annotations"
        ) from error
    if mode not in ("RGB", "RGBA"):
        raise InputError(
            f"{path} is a PNG of the mode {mode}, not RGB: a segment's id is r + 256 g + 65536 b of its pixels' color"
        )
    return red + 256 * green + 65536 * blue


def has_known_area(segment: Mapping[str, Any]) -> bool:
    """Whether its ``area`` is a number of pixels; where it is not, they are counted."""
    area = segment.get("area")
    return isinstance(area, (int, float)) and not isinstance(area, bool) and 0 < area < math.inf


def png_size_problem(dataset_dict: dict[str, Any], png: tuple[int, int], image: tuple[int, int]) -> str | None:
    """The problem of a PNG that has another size than its image, both (width, height); None where there is none."""
    if png == image:
        return None
    return (
        f"{dataset_dict['pan_seg_file_name']} is {png[0]} x {png[1]} pixels (width x height), but its image "
        f"{dataset_dict['file_name']} is {image[0]} x {image[1]}: correct one of them"
    )


def bounds(mask: np.ndarray) -> list[int]:
    """The original's box around a mask (H, W): x1, y1, x2, y2 are the first and last column and row with pixels.

    It is one pixel less wide and high than the pixels. So a segment of one row or column has no area and is no
    target; the original drops it only from crops.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]


def _shorten(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
