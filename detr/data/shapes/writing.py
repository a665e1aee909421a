"""Writes the `shapes` data set in COCO's file formats; see `shapes` for the layout of its folder.

Letters: H, W image height and width. Boxes are (x, y, width, height) in px.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray
from PIL import Image

from detr.data.shapes.drawing import CATEGORIES, SIZE, Mask, Segment, box_of, draw_scene

VERSION = 1  # raise it whenever the same seed no longer gives the same files
SPLITS = ("train", "val")  # the order seeds the generators

_FIRST_IMAGE_ID = {"train": 1, "val": 100_001}  # no id stands for two images
# By index rather than by chance, so that even a small set has some: 2 % empty images, 3 % with a crowd.
_EMPTY_EVERY, _CROWD_EVERY = 50, 33
_RLE_EVERY = 5  # in every fifth image, unhidden objects too are described by RLEs, not by polygons


def write_split(folder: Path, split: str, count: int, seed: int) -> None:
    """Writes the images, PNGs and annotations of one split into `folder`, which exists."""
    for name in (split, f"panoptic_{split}", "annotations"):
        (folder / name).mkdir(exist_ok=True)
    written = [_write_image(folder, split, seed, index) for index in range(count)]

    images = [image for image, _, _ in written]
    annotations = [annotation for _, in_image, _ in written for annotation in in_image]
    for i, annotation in enumerate(annotations, start=1):
        annotation["id"] = i  # not from 0, which pycocotools takes for "no match"
    panoptic = [segmentation for _, _, segmentation in written]
    things = [
        {"id": category.id, "name": category.name, "supercategory": "shape"}
        for category in CATEGORIES
        if category.isthing
    ]
    everything = [
        {
            "id": category.id,
            "name": category.name,
            "supercategory": "shape" if category.isthing else "landscape",
            "isthing": int(category.isthing),
            "color": list(category.color),
        }
        for category in CATEGORIES
    ]
    common = {"info": {"description": "shapes", "version": str(VERSION)}, "licenses": [], "images": images}
    write_json(
        folder / "annotations" / f"instances_{split}.json",
        {**common, "annotations": annotations, "categories": things},
    )
    write_json(
        folder / "annotations" / f"panoptic_{split}.json",
        {**common, "annotations": panoptic, "categories": everything},
    )


def _write_image(
    folder: Path, split: str, seed: int, index: int
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Writes one JPEG and one PNG. Returns the entries for "images" (one), for the instances' "annotations"
    (one each, still without ids) and for the panoptic "annotations" (one)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    image_id = _FIRST_IMAGE_ID[split] + index
    scene = draw_scene(
        rng,
        empty=index % _EMPTY_EVERY == _EMPTY_EVERY // 2,
        crowd=index % _CROWD_EVERY == _CROWD_EVERY // 2,
    )
    Image.fromarray(scene.image).save(folder / split / f"{image_id:012d}.jpg", quality=95)

    instances: list[dict[str, Any]] = []
    segments_info: list[dict[str, Any]] = []
    ids = np.zeros((SIZE, SIZE), dtype=np.uint32)
    colors = {category.id: category.color for category in CATEGORIES}
    isthing = {category.id: category.isthing for category in CATEGORIES}
    taken = {0}
    for segment in scene.segments:
        segment_id = _new_segment_id(rng, colors[segment.category_id], taken)
        ids[segment.mask] = segment_id
        common = {
            "category_id": segment.category_id,
            "area": int(segment.mask.sum()),
            "bbox": list(box_of(segment.mask)),
            "iscrowd": int(segment.iscrowd),
        }
        segments_info.append({"id": segment_id, **common})
        if isthing[segment.category_id]:
            segmentation = _segmentation(segment, as_rle=index % _RLE_EVERY == 0)
            instances.append({"image_id": image_id, **common, "segmentation": segmentation})
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
    Image.fromarray(rgb).save(folder / f"panoptic_{split}" / f"{image_id:012d}.png")

    image = {"id": image_id, "file_name": f"{image_id:012d}.jpg", "width": SIZE, "height": SIZE}
    panoptic = {"image_id": image_id, "file_name": f"{image_id:012d}.png", "segments_info": segments_info}
    return image, instances, panoptic


def _new_segment_id(rng: np.random.Generator, color: tuple[int, int, int], taken: set[int]) -> int:
    """An id not in `taken` (it is added), which as a color in the PNG is close to that of the class."""
    while True:
        red, green, blue = np.clip(np.array(color) + rng.integers(-25, 26, size=3), 0, 255).tolist()
        segment_id: int = red + 256 * green + 65536 * blue
        if segment_id not in taken:
            taken.add(segment_id)
            return segment_id


def _segmentation(segment: Segment, as_rle: bool) -> list[list[float]] | dict[str, Any]:
    """A thing's COCO "segmentation": polygon, compressed RLE, or for crowds, as in COCO, plain RLE."""
    if segment.iscrowd:
        return {"size": [SIZE, SIZE], "counts": _run_lengths(segment.mask)}
    if segment.outline is None or as_rle:
        rle = mask_util.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
        return {"size": [SIZE, SIZE], "counts": rle["counts"].decode("ascii")}
    return [segment.outline.ravel().tolist()]


def _run_lengths(mask: Mask) -> list[int]:
    """COCO's uncompressed RLE: lengths of alternating runs, column by column, the first one False."""
    pixels: NDArray[np.bool_] = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts: list[int] = np.diff(changes, prepend=0, append=mask.size).tolist()
    return counts


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))
