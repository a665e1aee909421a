"""Draws the scenes of the `shapes` data set and writes its files, as the docstring of the package describes.

Letters: H, W image height and width; V vertices of an outline; P parts.
Frame: pixel (row y, column x) covers [x, x + 1] x [y, y + 1]; outlines are (x, y) in pixels.
"""

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from detr.data.shapes import CATEGORIES, STUFF, THINGS, VERSION

SEED = 0
FIRST_IMAGE_ID = {"train": 1, "val": 100_001}
SIZE = 128  # height and width of every image, px
MIN_SIDE, MAX_SIDE = 14, 44  # sides of the box around an object's visible pixels, px
MIN_VISIBLE = 0.6  # share of an object's pixels that later objects must leave visible

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5  # pixel centers, each (H, W)


@dataclass
class Segment:
    """One object, crowd (a group of shapes that is annotated as a whole) or stuff region."""

    category: dict[str, Any]
    mask: np.ndarray  # (H, W) bool: visible pixels; no pixel belongs to two segments
    outline: np.ndarray | None = None  # (V, 2): pycocotools rasterizes it to `mask`; None where only a mask fits
    parts: Any = None  # (H, W, P) bool: the pixels of each shape before others hide them; None for stuff
    iscrowd: bool = False


def write_shapes(folder: Path, counts: Mapping[str, int]) -> None:
    """Writes the data set into `folder`; counts: number of images by split, "train" and "val"."""
    for split, count in counts.items():
        _write_split(folder, split, count)
    info = {"version": VERSION, "seed": SEED, **{f"{split}_images": count for split, count in counts.items()}}
    (folder / "info.json").write_text(json.dumps(info))


def _write_split(folder: Path, split: str, count: int) -> None:
    for name in (split, f"panoptic_{split}", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    instances: list[dict[str, Any]] = []
    images, panoptic = [], []
    for index in range(count):
        rng = np.random.default_rng([SEED, int(split == "val"), index])
        # By index, so that small sets have some too: 2 % empty images, 3 % with a crowd.
        image, segments = draw_scene(rng, empty=index % 50 == 25, crowd=index % 33 == 16)
        image_id = FIRST_IMAGE_ID[split] + index
        jpg, png = f"{image_id:012d}.jpg", f"{image_id:012d}.png"
        segments_info, rgb, taken = [], np.zeros_like(image), {0}
        for segment in segments:
            segment_id = 0
            while segment_id in taken:
                color = np.clip(segment.category["color"] + rng.integers(-25, 26, size=3), 0, 255)
                segment_id = int(color @ [1, 256, 65536])
            taken.add(segment_id)
            rgb[segment.mask] = color
            common = {"category_id": segment.category["id"], "area": int(segment.mask.sum())}
            common |= {"bbox": _box_of(segment.mask), "iscrowd": int(segment.iscrowd)}
            segments_info.append({"id": segment_id, **common})
            if segment.category["isthing"]:
                common["segmentation"] = _segmentation(segment, as_rle=index % 5 == 0)
                # pycocotools takes the id 0 for "no match".
                instances.append({"image_id": image_id, **common, "id": len(instances) + 1})
        Image.fromarray(image).save(folder / split / jpg, quality=95)
        Image.fromarray(rgb).save(folder / f"panoptic_{split}" / png)
        images.append({"id": image_id, "file_name": jpg, "width": SIZE, "height": SIZE})
        panoptic.append({"image_id": image_id, "file_name": png, "segments_info": segments_info})
    things = [{key: category[key] for key in ("id", "name", "supercategory")} for category in THINGS]
    shared = {"info": {"description": "shapes", "version": str(VERSION)}, "licenses": [], "images": images}
    for kind, annotations, categories in (("instances", instances, things), ("panoptic", panoptic, CATEGORIES)):
        content = {**shared, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))


def _segmentation(segment: Segment, as_rle: bool) -> list[list[float]] | dict[str, Any]:
    """A thing's COCO "segmentation": polygon, compressed RLE, or for crowds, as in COCO, uncompressed RLE."""
    if segment.iscrowd:
        # The first run must be background. It is, because no crowd reaches the corner of the image.
        runs = [len(list(run)) for _, run in groupby(segment.mask.ravel(order="F"))]
        return {"size": [SIZE, SIZE], "counts": runs}
    if segment.outline is None or as_rle:
        rle = mask_util.encode(np.asfortranarray(segment.mask, dtype=np.uint8))
        return {"size": [SIZE, SIZE], "counts": rle["counts"].decode("ascii")}
    return [segment.outline.ravel().tolist()]


def _box_of(mask: np.ndarray) -> list[int]:
    """The tight box [x, y, width, height] in px around the True pixels of a mask (H, W) that has some."""
    y, x = np.nonzero(mask)
    return [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]


def draw_scene(rng: np.random.Generator, empty: bool, crowd: bool) -> tuple[np.ndarray, list[Segment]]:
    """Draws a landscape with 1 to 6 objects, or none if `empty`; `crowd` adds one group of small shapes.

    Returns the image (H, W, 3), uint8 RGB, and its segments: things in drawing order, then stuff; the rest is void.
    """
    image, regions = _draw_landscape(rng)
    things = [] if empty else _place_things(rng, crowd)
    for thing in things:
        regions[thing.mask] = 0
        for part in np.moveaxis(thing.parts, 2, 0):
            _paint(rng, image, part, thing.category["color"])
    image += rng.uniform(4, 14) * rng.standard_normal(image.shape, dtype=np.float32)  # sensor noise
    stuff = [Segment(category, regions == category["id"]) for category in STUFF if category["id"] in regions]
    return image.clip(0, 255).astype(np.uint8), things + stuff


def _place_things(rng: np.random.Generator, crowd: bool) -> list[Segment]:
    """Things in drawing order; later ones leave enough of each visible for a detector to find it."""
    things = [_make_thing(rng, crowd)] if crowd else []
    wanted = len(things) + rng.integers(1, 7)
    for _ in range(240):  # a full image may have no place for the last object
        if len(things) == wanted:
            break
        new = _make_thing(rng)
        visible = [*(thing.mask & ~new.mask for thing in things), new.mask]
        if all(map(_is_fair, [*things, new], visible)):
            things.append(new)
            for thing, mask in zip(things, visible, strict=True):
                if (mask != thing.mask).any():
                    thing.mask, thing.outline = mask, None
    return things


def _is_fair(thing: Segment, visible: np.ndarray) -> bool:
    """Whether a detector can be expected to find `thing` by its pixels `visible` (H, W)."""
    if visible.sum() < MIN_VISIBLE * thing.parts.any(2).sum():
        return False
    sides = _box_of(visible)[2:]
    return min(sides) >= MIN_SIDE and (thing.iscrowd or max(sides) <= MAX_SIDE)


def _make_thing(rng: np.random.Generator, crowd: bool = False) -> Segment:
    """An object, or a crowd of shapes that are smaller than any object."""
    category = THINGS[rng.integers(len(THINGS))]
    if crowd:
        center = rng.uniform(28, SIZE - 28, size=2)
        outlines = [
            _outline(rng, category["name"], rng.uniform(9, 12)) + center + rng.uniform(-21, 21, size=2)
            for _ in range(rng.integers(7, 12))
        ]
    else:
        size = MIN_SIDE + 1 + (MAX_SIDE - MIN_SIDE - 1) * rng.uniform() ** 0.5  # more large ones than small ones
        outline = _outline(rng, category["name"], size)
        outlines = [np.round(outline + rng.uniform(-outline.min(0), SIZE - outline.max(0)), 2)]
    polygons = [outline.ravel().tolist() for outline in outlines]
    parts = mask_util.decode(mask_util.frPyObjects(polygons, SIZE, SIZE)).astype(bool)
    return Segment(category, parts.any(2), None if crowd else outlines[0], parts, crowd)


def _outline(rng: np.random.Generator, name: str, size: float) -> np.ndarray:
    """(V, 2): a shape around (0, 0), turned a little; the longer side of its box is `size` px."""
    corners = {"disc": 28, "square": 4, "triangle": 3, "star": 10}[name]
    angle = rng.uniform(-0.4, 0.4) + 2 * np.pi * np.arange(corners) / corners - np.pi / 2  # the first points up
    if name == "square":
        angle += np.pi / 4
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    if name == "star":
        points[1::2] *= 0.45
    return points * (size / np.ptp(points, axis=0).max())


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, rgb: list[int]) -> None:
    """Paints a shaded shape with a darker rim onto `image` (H, W, 3), in place, in a variation of the color `rgb`."""
    # Each class has its own hue, which makes it easy to tell: the few minutes of the quickstart go to finding objects.
    hue = (colorsys.rgb_to_hsv(*rgb)[0] + rng.uniform(-0.03, 0.03)) % 1
    color = 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 1), rng.uniform(0.6, 1)), dtype=np.float32)
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    x, y, width, height = _box_of(mask)
    angle = rng.uniform(0, 2 * np.pi)  # of the light
    light = 1 + 0.35 * (np.cos(angle) * ((_X - x) / width - 0.5) + np.sin(angle) * ((_Y - y) / height - 0.5))
    shade = (light * np.where(inner, 1, 0.6)).astype(np.float32)
    image[mask] = shade[mask, None] * color


def _draw_landscape(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture (H, W, 3), float32 RGB 0..255, and the category id of every pixel (H, W), 0 = void."""
    sky, water, grass = STUFF
    layouts = ((sky, grass), (sky, water), (water, grass), (sky, water, grass))
    stuff = layouts[rng.integers(len(layouts))]
    image, regions = _texture(rng, stuff[0]["name"]), np.full((SIZE, SIZE), stuff[0]["id"], dtype=np.uint8)
    for i, category in enumerate(stuff[1:], start=1):
        # A wavy edge, which leaves at least 17 px of height to every region.
        edge = SIZE * (i / len(stuff) + rng.uniform(-0.06, 0.06))
        edge = edge + rng.uniform(2, 5) * np.sin(_X[0] / rng.uniform(8, 20) + rng.uniform(0, 2 * np.pi))
        below = edge < _Y
        image[below] = _texture(rng, category["name"])[below]
        regions[below] = category["id"]
        regions[np.abs(_Y - edge) < 0.75] = 0  # the edge itself is void, as in COCO
    return image, regions


def _texture(rng: np.random.Generator, name: str) -> np.ndarray:
    """(H, W, 3), float32 RGB: sky, water or grass, in a color that differs a little between images."""

    def noise(rows: int, columns: int) -> np.ndarray:  # (H, W): smooth, from rows x columns random values
        coarse = rng.uniform(-1, 1, size=(rows, columns)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    if name == "sky":  # brighter towards the ground
        color, tones = (140, 180, 220), 35 * (_Y / SIZE - 0.5) + 24 * noise(6, 4)
    elif name == "water":  # level stripes
        waves = np.sin((_Y + 5 * noise(4, 5)) * rng.uniform(0.8, 1.3) + rng.uniform(0, 2 * np.pi))
        color, tones = (60, 105, 150), (18 * waves + 8 * noise(5, 5)).astype(np.float32)
    else:  # upright blades: fine along x, coarse along y
        color, tones = (95, 140, 75), 26 * noise(24, 90) + 12 * noise(5, 5)
    varied = np.array(color, dtype=np.float32) + rng.uniform(-18, 18, size=3).astype(np.float32)
    return varied + tones[:, :, None]
