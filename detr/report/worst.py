"""The images that cost most, as pictures: the ground truth beside the prediction, each box in the color of its kind."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from detr.data.images import read_image
from detr.errors import InputError
from detr.pictures.drawing import draw_objects, label_text
from detr.report.kinds import KINDS
from detr.report.results import CORRECT, IGNORED, MISSED, ImageReport

MIN_SIDE, MAX_SIDE = 320, 480  # pixels of a picture's shorter side
MOST_LABELED = 10  # boxes in a picture; where there are more, only mistakes have a label
QUALITY = 80  # of JPEG: some 50 kB a picture
GRAY = 128  # in the place of an image that cannot be read


@dataclass(frozen=True)
class Pair:
    """
    name: of the image file, or the image's id
    truth, prediction: data URIs of JPEG pictures
    caption: what is wrong; problem: why the image is gray, or ''
    """

    name: str
    truth: str
    prediction: str
    caption: str
    problem: str


def draw_pair(image: ImageReport, class_names: Sequence[str]) -> Pair:
    """The pictures of an image, and in words what is wrong in it."""
    problem = ""
    try:
        pixels = np.ascontiguousarray(read_image(image.file, "RGB"))
    except InputError as error:
        pixels, problem = _gray(image), str(error)
    return Pair(
        name=os.path.basename(image.file) or f"image {image.image_id}",
        truth=_draw(pixels, image.truth_boxes, image.truth_classes, image.truth_kinds, None, class_names),
        prediction=_draw(pixels, image.boxes, image.classes, image.kinds, image.scores, class_names),
        caption=_caption(image),
        problem=problem,
    )


def _draw(
    pixels: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    kinds: Sequence[str],
    scores: np.ndarray | None,
    names: Sequence[str],
) -> str:
    """scores: of detections; None for objects."""
    order = sorted(range(len(kinds)), key=lambda i: kinds[i] in (CORRECT, IGNORED))  # labels of mistakes come first
    labels = []
    for i in order:
        label = label_text(int(classes[i]), names, None if scores is None else float(scores[i]))
        if kinds[i] != CORRECT:
            label = f"{label}, {KINDS[kinds[i]].label}"
        elif len(order) > MOST_LABELED:
            label = ""
        labels.append(label)
    side = min(pixels.shape[:2])
    picture = draw_objects(
        pixels,
        boxes[order].reshape(-1, 4),
        classes[order].tolist(),
        labels,
        scale=min(max(1.0, MIN_SIDE / side), MAX_SIDE / side),
        colors=[KINDS[kinds[i]].rgb for i in order],
    )
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _caption(image: ImageReport) -> str:
    """ "2 missed, 1 duplicate" """
    # A wrong detection at an object stands for both of them.
    kinds = [*image.kinds, *(kind for kind in image.truth_kinds if kind == MISSED)]
    counts = {kind: kinds.count(kind) for kind in KINDS if kind not in (CORRECT, IGNORED)}
    return ", ".join(f"{count} {KINDS[kind].label}" for kind, count in counts.items() if count)


def _gray(image: ImageReport) -> np.ndarray:
    """(H, W, 3), as large as the boxes need."""
    boxes = np.concatenate([image.truth_boxes.reshape(-1, 4), image.boxes.reshape(-1, 4)])
    width, height = np.ceil(boxes[:, 2:].max(0, initial=64)).astype(int) + 1
    return np.full((height, width, 3), GRAY, dtype=np.uint8)
