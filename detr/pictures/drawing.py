"""Draws objects and panoptic maps on images, by Detectron2's Visualizer, with labels that do not hide each other."""

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib.font_manager import FontProperties
from PIL import Image
from torch import Tensor

from detr.pictures.labels import gap, place_labels

Color = tuple[float, float, float]

MASK_OPACITY, SEGMENT_OPACITY = 0.45, 0.5
SEGMENT_EDGE: Color = (1.0, 1.0, 0.95)  # between two segments of one class too
EDGE_OF_SIDE = 400  # of the image's side is an edge's width

PADDING = 2.0  # pixels around a text, which Detectron2 makes dark
# The height of the letters grows with the picture, though less than its side does.
TEXT_PIXELS, TEXT_OF_SIDE, TEXT_GROWTH, MIN_TEXT_PIXELS = 13.0, 550.0, 0.8, 8.0
MAX_LABEL_SHARE = 0.1  # of the picture, before letters shrink


def class_color(index: int) -> Color:
    """The color of a class, always the same: RGB in [0, 1]; neighbors differ most."""
    hue = (0.58 + 0.618034 * index) % 1  # the golden ratio: no hue comes near that of the classes just before
    return colorsys.hls_to_rgb(hue, (0.5, 0.62, 0.4)[index // 8 % 3], 0.9)


def label_text(index: int, class_names: Sequence[str] | None, score: float | None = None) -> str:
    """ "cat 98%", or the class's number where nothing names it."""
    name = class_names[index] if class_names else f"class {index}"
    return name if score is None else f"{name} {score:.0%}"


def draw_prediction(
    image: np.ndarray, prediction: dict[str, Any], class_names: Sequence[str] | None = None, scale: float = 1.0
) -> np.ndarray:
    """The picture (H', W', 3) uint8, RGB: the panoptic map where there is one, else boxes and masks.

    image: (H, W, 3) uint8, RGB
    prediction: as ``Predictor.predict`` returns it; all of its objects are drawn
    class_names: of the K classes
    scale: of the picture to the image
    """
    if "panoptic_seg" in prediction:
        segmentation, segments = prediction["panoptic_seg"]
        return draw_segments(image, segmentation, segments, class_names, scale)
    return draw_instances(image, prediction["instances"], class_names, scale)


def draw_instances(
    image: np.ndarray, instances: Instances, class_names: Sequence[str] | None = None, scale: float = 1.0
) -> np.ndarray:
    """As ``draw_prediction``; instances: on the CPU, of the image's size."""
    order = instances.scores.argsort(descending=True)  # in a crowd, the most certain ones are labeled
    instances = instances[order]
    classes = instances.pred_classes.tolist()
    labels = [label_text(x, class_names, score) for x, score in zip(classes, instances.scores.tolist(), strict=True)]
    masks = instances.pred_masks if instances.has("pred_masks") else None
    return draw_objects(image, instances.pred_boxes.tensor.numpy(), classes, labels, masks, scale)


def draw_objects(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    labels: Sequence[str],
    masks: Tensor | None = None,
    scale: float = 1.0,
    colors: Sequence[Color] | None = None,
) -> np.ndarray:
    """Boxes, and masks where there are any, each in its class's color.

    image: (H, W, 3) uint8, RGB; boxes: (M, 4) xyxy in its pixels; masks: (M, H, W) bool
    labels: the first ones get a place where there is not space for all; "" for none
    colors: of the M objects, in the place of their classes' colors

    Returns the picture (H', W', 3) uint8, RGB.
    """
    colors = colors or [class_color(index) for index in classes]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = (-areas).argsort(kind="stable")  # small ones over large ones
    if masks is not None:
        image = image.copy()
        for index in order:
            _paint(image, masks[index].numpy(), colors[index], MASK_OPACITY, colors[index])
    visualizer = _visualizer(image, scale)
    for index in order:
        visualizer.draw_box(boxes[index], edge_color=colors[index], alpha=0.9)
    _write_labels(visualizer, labels, boxes, colors, centered=False)
    return _picture(visualizer)


def draw_segments(
    image: np.ndarray,
    segmentation: Tensor,
    segments: Sequence[dict[str, Any]],
    class_names: Sequence[str] | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """A panoptic map: each segment in its class's color, with a light edge.

    image: (H, W, 3) uint8, RGB
    segmentation: (H, W) int32, ids of the segments; segments: a dict each with "id", "category_id" and, if predicted,
        "score"

    Returns the picture (H', W', 3) uint8, RGB.
    """
    image = image.copy()
    labels, boxes, colors = [], [], []
    for segment in segments:
        mask = (segmentation == segment["id"]).numpy()
        if not mask.any():
            continue
        color = class_color(segment["category_id"])
        _paint(image, mask, color, SEGMENT_OPACITY, SEGMENT_EDGE)
        labels.append(label_text(segment["category_id"], class_names, segment.get("score")))
        boxes.append(_middle(mask))
        colors.append(color)
    visualizer = _visualizer(image, scale)
    _write_labels(visualizer, labels, np.array(boxes).reshape(-1, 4), colors, centered=True)
    return _picture(visualizer)


def _paint(image: np.ndarray, mask: np.ndarray, color: Color, opacity: float, edge: Color) -> None:
    """Lays a mask over an image, in place. Detectron2's ``draw_binary_mask`` takes seconds for a large image.

    image: (H, W, 3) uint8; mask: (H, W) bool
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part, inside = np.ascontiguousarray(image[window]), mask[window]
    part[inside] = part[inside] * (1 - opacity) + np.array(color) * 255 * opacity
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    width = max(round((image.shape[0] * image.shape[1]) ** 0.5 / EDGE_OF_SIDE), 1)
    cv2.drawContours(part, contours, -1, [channel * 255 for channel in edge], width, cv2.LINE_AA)
    image[window] = part


def _middle(mask: np.ndarray) -> tuple[float, float, float, float]:
    """A point in a mask, as a box without extent: where it is widest in its median row."""
    rows = np.flatnonzero(mask.any(1))
    counts = mask.sum(1).cumsum()
    y = int(rows[np.searchsorted(counts[rows], counts[-1] / 2)])
    edges = np.flatnonzero(np.diff(mask[y].astype(np.int8), prepend=0, append=0))
    starts, ends = edges[::2], edges[1::2]
    widest = (ends - starts).argmax()
    x = (starts[widest] + ends[widest]) / 2
    return x, y + 0.5, x, y + 0.5


def _visualizer(image: np.ndarray, scale: float) -> Visualizer:
    visualizer = Visualizer(image, scale=scale)
    side = (image.shape[0] * image.shape[1]) ** 0.5 * scale  # of the picture
    pixels = max(TEXT_PIXELS * (side / TEXT_OF_SIDE) ** TEXT_GROWTH, MIN_TEXT_PIXELS)
    # In points of the image. Line widths follow from it.
    visualizer._default_font_size = pixels * 72 / visualizer.output.dpi / scale
    return visualizer


def _write_labels(
    visualizer: Visualizer, labels: Sequence[str], boxes: np.ndarray, colors: Sequence[Color], centered: bool
) -> None:
    output, scale = visualizer.output, visualizer.output.scale
    labels = [text.replace("$", r"\$") for text in labels]  # else matplotlib takes it for mathematics
    points = visualizer._default_font_size
    sizes = _measure(visualizer, labels, points)
    share = sizes.prod(1).sum() / (output.width * output.height)
    if share > MAX_LABEL_SHARE:  # a crowd: smaller letters, as long as they can be read
        smallest = min(MIN_TEXT_PIXELS * 72 / output.dpi / scale, points)
        points = max(points * (MAX_LABEL_SHARE / share) ** 0.5, smallest)
        sizes = _measure(visualizer, labels, points)
    positions = place_labels(sizes, boxes, (output.width, output.height), centered)
    for text, position, size, box, color in zip(labels, positions, sizes, boxes, colors, strict=True):
        if position is None or not text:
            continue
        light = tuple(0.5 + channel / 2 for channel in color)
        if gap(position, size, box) > size[1] / 2:
            middle = position + size / 2
            end = np.clip(middle, np.maximum(box[:2], 0), box[2:])
            visualizer.draw_line([middle[0], end[0]], [middle[1], end[1]], color=light, linewidth=1)
        corner = position[0] + PADDING / scale, position[1] + PADDING / scale
        visualizer.draw_text(text, corner, font_size=points, color=light, horizontal_alignment="left")


def _measure(visualizer: Visualizer, labels: Sequence[str], points: float) -> np.ndarray:
    """(M, 2) widths and heights of labels in pixels of the image; points: the font's size."""
    output = visualizer.output
    renderer, font = output.canvas.get_renderer(), FontProperties(family="sans-serif", size=points * output.scale)
    _, least, _ = renderer.get_text_width_height_descent("lp", font, ismath=False)
    extents = [renderer.get_text_width_height_descent(text, font, ismath=False) for text in labels]
    sizes = [(width + 2 * PADDING, max(height, least) + 2 * PADDING) for width, height, _ in extents]
    return np.array(sizes).reshape(-1, 2) / output.scale


def _picture(visualizer: Visualizer) -> np.ndarray:
    """What was drawn, over the image, which matplotlib would take seconds to resample to its own size."""
    output = visualizer.output
    output.ax.images[0].remove()  # the image, below masks
    buffer, (width, height) = output.canvas.print_to_buffer()
    drawn = np.frombuffer(buffer, dtype=np.uint8).reshape(height, width, 4)
    below = Image.fromarray(visualizer.img).resize((width, height), Image.Resampling.NEAREST)
    picture = Image.alpha_composite(below.convert("RGBA"), Image.fromarray(drawn))
    return np.array(picture.convert("RGB"))
