"""Draws one scene of the `shapes` data set from a random generator. Reads and writes no files.

A scene is a landscape of two or three stuff regions (sky, water, grass) with discs, squares,
triangles and stars on it. Colors are random, so that a class is known by its shape alone.

Letters: H, W image height and width; V vertices of an outline.
Frame: pixel (row y, column x) covers [x, x + 1] x [y, y + 1]; outlines are (x, y) in pixels.
"""

import colorsys
from dataclasses import dataclass

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray
from PIL import Image

SIZE = 128  # height and width of every image, px
MIN_SIDE, MAX_SIDE = 14, 44  # sides of the box around an object's visible pixels, px
MIN_VISIBLE = 0.6  # share of an object's pixels that later objects must leave visible
MAX_OBJECTS = 6

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Category:
    """A class with its data set id and the color (RGB, 0..255) that stands for it in panoptic PNGs."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]


# The ids have gaps, as COCO's do, so that a forgotten mapping to contiguous ids cannot go unnoticed.
CATEGORIES = (
    Category(1, "disc", True, (214, 45, 85)),
    Category(2, "square", True, (240, 130, 40)),
    Category(4, "triangle", True, (155, 89, 182)),
    Category(7, "star", True, (235, 230, 60)),
    Category(9, "sky", False, (120, 180, 235)),
    Category(12, "water", False, (40, 90, 160)),
    Category(17, "grass", False, (70, 150, 60)),
)
_ID = {category.name: category.id for category in CATEGORIES}
_HUES = {c.id: colorsys.rgb_to_hsv(*c.color)[0] for c in CATEGORIES}
_THINGS = tuple(category for category in CATEGORIES if category.isthing)
_VOID = 0  # category id of pixels that belong to no region

_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32) + 0.5  # pixel centers, each (H, W)


@dataclass
class Segment:
    """One object, crowd or stuff region, as far as it can be seen.

    mask (H, W): True = a visible pixel of this segment; no pixel belongs to two segments.
    outline (V, 2): polygon in px whose rasterization by pycocotools is exactly `mask`; None for stuff,
        for crowds and for objects that something hides in part, which only a mask describes well.
    """

    category_id: int
    mask: Mask
    outline: NDArray[np.float64] | None = None
    iscrowd: bool = False


@dataclass
class Scene:
    """image (H, W, 3): uint8 RGB. segments: things in drawing order, then stuff; the rest is void."""

    image: NDArray[np.uint8]
    segments: list[Segment]


@dataclass
class _Sprite:
    """Something to draw: its parts (one, or the members of a crowd), their union, what is left of it."""

    category_id: int
    parts: list[Mask]
    outline: NDArray[np.float64] | None
    full: Mask  # (H, W): before occlusion
    visible: Mask  # (H, W): after it

    @property
    def iscrowd(self) -> bool:
        return self.outline is None

    def is_fair_as(self, visible: Mask) -> bool:
        """Whether a detector can be asked to find this sprite when only `visible` shows of it."""
        if visible.sum() < MIN_VISIBLE * self.full.sum():
            return False
        _, _, width, height = box_of(visible)
        if self.iscrowd:
            return min(width, height) >= MIN_SIDE
        return min(width, height) >= MIN_SIDE and max(width, height) <= MAX_SIDE


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """The tight box (x, y, width, height) in px around the True pixels of a mask that has some."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def draw_scene(rng: np.random.Generator, *, empty: bool = False, crowd: bool = False) -> Scene:
    """Draws 1 to 6 objects on a landscape, or none if `empty`; `crowd` adds one group of small shapes."""
    image, regions = _draw_landscape(rng)
    sprites = [] if empty else _place_sprites(rng, crowd)
    for sprite in sprites:
        for part in sprite.parts:
            _paint(rng, image, part, _HUES[sprite.category_id])
    # Sensor noise, of a strength that differs between images.
    image += rng.uniform(4, 14) * rng.standard_normal(image.shape, dtype=np.float32)

    segments = []
    covered = np.zeros((SIZE, SIZE), dtype=bool)
    for sprite in sprites:
        whole = bool((sprite.visible == sprite.full).all())
        outline = sprite.outline if whole else None
        segments.append(Segment(sprite.category_id, sprite.visible, outline, sprite.iscrowd))
        covered |= sprite.full
    for category_id in (_ID["sky"], _ID["water"], _ID["grass"]):
        mask = (regions == category_id) & ~covered
        if mask.any():
            segments.append(Segment(category_id, mask))
    return Scene(image.clip(0, 255).astype(np.uint8), segments)


def _place_sprites(rng: np.random.Generator, crowd: bool) -> list[_Sprite]:
    """Sprites in drawing order, each still fair after all later ones are drawn over it."""
    sprites: list[_Sprite] = []
    if crowd:
        sprites.append(_make_crowd(rng))
    wanted = len(sprites) + int(rng.integers(1, MAX_OBJECTS + 1))
    for _ in range(40 * MAX_OBJECTS):  # in a full image the last object may find no place: then it stays out
        if len(sprites) == wanted:
            break
        new = _make_object(rng)
        hidden = [sprite for sprite in sprites if (sprite.visible & new.full).any()]
        left = [sprite.visible & ~new.full for sprite in hidden]
        if new.is_fair_as(new.full) and all(s.is_fair_as(v) for s, v in zip(hidden, left, strict=True)):
            for sprite, visible in zip(hidden, left, strict=True):
                sprite.visible = visible
            sprites.append(new)
    return sprites


def _make_object(rng: np.random.Generator) -> _Sprite:
    category = _THINGS[rng.integers(len(_THINGS))]
    size = MIN_SIDE + 1 + (MAX_SIDE - MIN_SIDE - 1) * rng.uniform() ** 0.5  # more large ones than small ones
    outline = _outline(category.name, size, rng.uniform(-0.4, 0.4))
    # A free place inside the image for the box around the outline.
    low, high = -outline.min(0), SIZE - outline.max(0)
    outline = np.round(outline + rng.uniform(low, high), 2)
    mask = _rasterize(outline)
    return _Sprite(category.id, [mask], outline, mask, mask)


def _make_crowd(rng: np.random.Generator) -> _Sprite:
    """A flock of shapes of one class, each smaller than any object: only the group is annotated."""
    category = _THINGS[rng.integers(len(_THINGS))]
    middle = rng.uniform(28, SIZE - 28, size=2)
    parts = []
    for _ in range(rng.integers(7, 12)):
        outline = _outline(category.name, rng.uniform(9, 12), rng.uniform(-0.4, 0.4))
        parts.append(_rasterize(outline + middle + rng.uniform(-21, 21, size=2)))
    full = np.logical_or.reduce(parts)
    return _Sprite(category.id, parts, None, full, full)


def _outline(name: str, size: float, angle: float) -> NDArray[np.float64]:
    """(V, 2): a shape turned by `angle` (radians) around (0, 0); its box's longer side is `size` px."""
    corners = {"disc": 28, "square": 4, "triangle": 3, "star": 10}[name]
    turn = angle + 2 * np.pi * np.arange(corners) / corners - np.pi / 2  # the first corner points up
    if name == "square":
        turn += np.pi / 4
    radius = np.ones(corners)
    if name == "star":
        radius[1::2] = 0.45
    points = radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    scaled: NDArray[np.float64] = points * (size / np.ptp(points, axis=0).max())
    return scaled


def _rasterize(outline: NDArray[np.float64]) -> Mask:
    """(H, W): the pixels of a polygon, by the rasterizer that every reader of the annotations uses.

    Pixels and polygon annotation agree to the last pixel this way.
    """
    rle = mask_util.frPyObjects([outline.ravel().tolist()], SIZE, SIZE)
    mask: Mask = mask_util.decode(rle)[:, :, 0].astype(bool)
    return mask


def _paint(rng: np.random.Generator, image: Floats, mask: Mask, hue: float) -> None:
    """Paints a shaded shape with a darker rim onto `image` (H, W, 3), in place; hue: 0..1 around the circle."""
    x, y, width, height = box_of(mask)
    window = np.s_[y : y + height, x : x + width]
    image, mask = image[window], mask[window]

    # Classes keep to their part of the color circle, away from the landscape's: what DETR is slow to learn
    # from nothing is where objects are, and that is what the few minutes of a demonstration should go to.
    varied = (hue + rng.uniform(-0.03, 0.03)) % 1, rng.uniform(0.6, 1), rng.uniform(0.6, 1)
    color = 255 * np.array(colorsys.hsv_to_rgb(*varied), dtype=np.float32)

    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    towards = rng.uniform(0, 2 * np.pi)  # where the light comes from
    across, down = (_X[window] - x) / width - 0.5, (_Y[window] - y) / height - 0.5
    light = 1 + 0.35 * (np.cos(towards) * across + np.sin(towards) * down)
    shade = (light * np.where(inner, 1, 0.6)).astype(np.float32)
    image[mask] = shade[mask, None] * color


def _draw_landscape(rng: np.random.Generator) -> tuple[Floats, NDArray[np.uint8]]:
    """A picture (H, W, 3), RGB 0..255, and the category id of every pixel (H, W), 0 = void."""
    layouts = (("sky", "grass"), ("sky", "water"), ("water", "grass"), ("sky", "water", "grass"))
    names = layouts[rng.integers(len(layouts))]
    textures = {"sky": _sky, "water": _water, "grass": _grass}
    image = textures[names[0]](rng)
    regions = np.full((SIZE, SIZE), _ID[names[0]], dtype=np.uint8)
    for i, name in enumerate(names[1:], start=1):
        # A wavy edge. Regions keep 17 px or more of height at every column, whatever the draw.
        edge = SIZE * (i / len(names) + rng.uniform(-0.06, 0.06))
        edge = edge + rng.uniform(2, 5) * np.sin(_X[0] / rng.uniform(8, 20) + rng.uniform(0, 2 * np.pi))
        below = edge < _Y
        np.copyto(image, textures[name](rng), where=below[:, :, None])
        regions[below] = _ID[name]
        regions[np.abs(_Y - edge) < 0.75] = _VOID  # as in COCO, nobody says whose the edge itself is
    return image, regions


def _clouds(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """(H, W): smooth noise, about -1 to 1, with that many random values along each axis."""
    coarse = rng.uniform(-1, 1, size=(rows, columns)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _tint(rng: np.random.Generator, color: tuple[int, int, int], tones: Floats) -> Floats:
    """(H, W, 3): a color, a little different in every image, darker and lighter by `tones` (H, W)."""
    varied = np.array(color, dtype=np.float32) + rng.uniform(-18, 18, size=3).astype(np.float32)
    return varied + tones[:, :, None]


def _sky(rng: np.random.Generator) -> Floats:
    """Smooth noise, brighter towards the ground."""
    return _tint(rng, (140, 180, 220), 35 * (_Y / SIZE - 0.5) + 24 * _clouds(rng, 6, 4))


def _water(rng: np.random.Generator) -> Floats:
    """Level, wavering stripes."""
    waves = np.sin((_Y + 5 * _clouds(rng, 4, 5)) * rng.uniform(0.8, 1.3) + rng.uniform(0, 2 * np.pi))
    return _tint(rng, (60, 105, 150), (18 * waves + 8 * _clouds(rng, 5, 5)).astype(np.float32))


def _grass(rng: np.random.Generator) -> Floats:
    """Upright blades: noise that is fine along x and coarse along y."""
    return _tint(rng, (95, 140, 75), 26 * _clouds(rng, 24, 90) + 12 * _clouds(rng, 5, 5))
