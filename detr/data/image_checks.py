"""Checks of image files before training: images, and the contents of panoptic PNGs."""

import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from PIL import Image

from detr.data.dataset_mapper import size_problem
from detr.data.images import check_regular, range_problem, upright_size
from detr.data.loading import path_hint
from detr.data.panoptic_mapper import has_known_area, png_size_problem, read_segment_ids, segment_masks
from detr.errors import InputError

THREADS = 8  # they wait for files, they do not compute

logger = logging.getLogger(__name__)


def check_images(dicts: Sequence[dict[str, Any]], panoptic: bool = False) -> None:
    """Checks that every image exists, can be read and has the size that its dict gives.

    panoptic: whether every image has a panoptic PNG, which must exist too and have the image's size

    Of a JPEG with an end marker only the header is read; other images are decoded, for else nothing tells that they
    are cut off. Raises InputError that names the first bad file.
    """
    start = time.perf_counter()
    _check_existence("image", [x["file_name"] for x in dicts])
    if panoptic:
        _check_existence("panoptic PNG", [x["pan_seg_file_name"] for x in dicts])
    with ThreadPoolExecutor(THREADS) as pool:
        problem = next(filter(None, pool.map(partial(_header_problem, panoptic=panoptic), dicts)), None)
    logger.info("Checked %d images in %.1f s", len(dicts), time.perf_counter() - start)
    if problem:
        raise InputError(problem)


def check_pngs(dicts: Sequence[dict[str, Any]]) -> None:
    """Checks that every panoptic PNG holds the segments that its JSON lists, and no others: else PQ would be wrong.

    Every PNG is decoded. Raises InputError that names the first bad one.
    """
    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        problem = next(filter(None, pool.map(_png_problem, dicts)), None)
    logger.info("Checked the segments of %d panoptic PNGs in %.1f s", len(dicts), time.perf_counter() - start)
    if problem:
        raise InputError(problem)


def _check_existence(kind: str, paths: Sequence[str]) -> None:
    missing = list(_missing(paths))
    if missing:
        more = f" (and {len(missing) - 1} more of {len(paths)})" if len(missing) > 1 else ""
        raise InputError(
            f"the {kind} {missing[0]} does not exist{more}: {path_hint(missing[0])}, or correct the file names in its "
            "annotations"
        )


def _missing(paths: Iterable[str]) -> Iterable[str]:
    """The local paths that do not exist. Each folder is listed once, which is faster than a question a file."""
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
        return None  # would need a download; the mapper checks it when it reads the image
    try:
        check_regular(path)
        # Given a path, PIL maps a TIFF that it should turn into memory, and turns it twice.
        with open(path, "rb") as file, Image.open(file) as image:
            problem = range_problem(path, image)
            if problem:
                return problem
            width, height = upright_size(image)
            if not _ends_as_jpeg(path):
                image.load()  # raises an error where the file is cut off
        problem = size_problem(x, width, height)
        if problem or not panoptic:
            return problem
        path = x["pan_seg_file_name"]
        check_regular(path)
        with Image.open(path) as png:
            return png_size_problem(x, png.size, (width, height))
    except InputError as error:
        return str(error)
    except Exception as error:  # PIL raises many kinds for broken files
        reason = str(error).replace(f"<_io.BufferedReader name={path!r}>", "").replace(repr(path), "").strip()
        return f"cannot read the image {path} ({reason}): restore the file or take it out of the annotations"


def _ends_as_jpeg(path: str) -> bool:
    with open(path, "rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"  # the end-of-image marker


def _png_problem(x: dict[str, Any]) -> str | None:
    try:
        masks = segment_masks(x, read_segment_ids(x["pan_seg_file_name"]))
    except InputError as error:
        return str(error)
    for mask, segment in zip(masks, x["segments_info"], strict=True):
        if has_known_area(segment) and segment["area"] != mask.sum():
            return (
                f"{x['pan_seg_file_name']} has {mask.sum()} pixels of the segment {segment['id']}, but its JSON gives "
                f"the area {segment['area']}, and PQ would be wrong: correct one of them"
            )
    return None
