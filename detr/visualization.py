"""Pictures: detections beside ground truth, and the course of a training."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import BoxMode, Instances
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

from detr import drawing
from detr.drawing import draw_objects, label_text

MIN_SHOWN_SIDE = 384  # pixels; smaller images are enlarged, so that labels can be read
GAP = 8  # pixels between pictures
CAPTION = 24  # pixels of height
CURVES = {"bbox/AP50": "box AP50", "bbox/AP": "box AP", "segm/AP": "mask AP", "panoptic_seg/PQ": "PQ"}


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: Sequence[int],
    metadata: Metadata,
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """image (H, W, 3) RGB uint8, boxes (M, 4) xyxy in its pixels -> the picture (H', W', 3) uint8, enlarged."""
    names = metadata.get("thing_classes")
    shown = [None] * len(classes) if scores is None else scores
    labels = [label_text(index, names, score) for index, score in zip(classes, shown, strict=True)]
    return draw_objects(image, boxes, classes, labels, scale=_scale(image))


def truth_beside_detections(
    image: np.ndarray,
    annotations: Sequence[dict[str, Any]],
    detections: Instances,
    metadata: Metadata,
    threshold: float = 0.5,
) -> np.ndarray:
    """One row of the sheet: the ground truth, then the predictions with a score above ``threshold``."""
    objects = [obj for obj in annotations if not obj.get("iscrowd", 0)]
    truth = [BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in objects]
    confident = detections[detections.scores > threshold].to("cpu")
    left = draw_boxes(image, np.array(truth).reshape(-1, 4), [obj["category_id"] for obj in objects], metadata)
    right = draw_boxes(
        image,
        confident.pred_boxes.tensor.numpy(),
        confident.pred_classes.tolist(),
        metadata,
        confident.scores.tolist(),
    )
    return sheet([_captioned(left, "ground truth"), _captioned(right, f"predictions, score > {threshold}")], columns=2)


def truth_beside_panoptic(
    image: np.ndarray,
    truth: tuple[np.ndarray, Sequence[dict[str, Any]]],
    predicted: tuple[Tensor, Sequence[dict[str, Any]]],
    metadata: Metadata,
) -> np.ndarray:
    """One row of the sheet: the ground truth, then the predicted panoptic map.

    image: (H, W, 3) RGB uint8
    truth, predicted: segment ids (H, W), and a dict per segment with "id", "category_id" and "isthing"
    metadata: of a panoptic data set, whose ``stuff_classes`` list things and stuff
    """
    left = draw_segments(image, torch.from_numpy(truth[0].astype(np.int32)), truth[1], metadata)
    right = draw_segments(image, predicted[0].cpu(), predicted[1], metadata)
    return sheet([_captioned(left, "ground truth"), _captioned(right, "predicted panoptic map")], columns=2)


def draw_segments(
    image: np.ndarray, segmentation: Tensor, segments: Sequence[dict[str, Any]], metadata: Metadata
) -> np.ndarray:
    """image (H, W, 3) RGB uint8, ids (H, W) int32 -> the picture (H', W', 3) uint8, enlarged."""
    return drawing.draw_segments(image, segmentation, segments, metadata.stuff_classes, _scale(image))


def _scale(image: np.ndarray) -> float:
    return max(1.0, MIN_SHOWN_SIDE / min(image.shape[:2]))


def _captioned(picture: np.ndarray, text: str) -> np.ndarray:
    strip = Image.new("RGB", (picture.shape[1], CAPTION), "white")
    ImageDraw.Draw(strip).text((4, 2), text, fill="black", font_size=CAPTION - 8)
    return np.concatenate([np.asarray(strip), picture])


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lays pictures (H_i, W_i, 3) out in rows on white, each in a cell of the largest one's size."""
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    rows = -(-len(pictures) // columns)
    canvas = np.full((rows * height + (rows - 1) * GAP, columns * width + (columns - 1) * GAP, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + GAP), (index % columns) * (width + GAP)
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def save_picture(picture: np.ndarray, path: str) -> None:
    Image.fromarray(picture).save(path)


def plot_training(metrics_file: str, path: str) -> None:
    """The loss against iterations, and AP and PQ against the minutes since the start.

    metrics_file: Detectron2's ``metrics.json``, one JSON object a line, with ``minutes`` recorded in training
    """
    with open(metrics_file) as file:
        rows = [json.loads(line) for line in file]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axis, ap_axis = figure.subplots(1, 2)
    losses = [(row["iteration"], row["total_loss"]) for row in rows if "total_loss" in row]
    loss_axis.plot(*zip(*losses, strict=True), color="tab:blue")
    loss_axis.set(xlabel="iteration", ylabel="total loss, all decoder layers", yscale="log")
    timed, minutes = [], 0.0
    for row in rows:
        minutes = row.get("minutes", minutes)  # the last evaluation comes after the last step: its row has no time
        if "bbox/AP" in row:
            timed.append({**row, "minutes": minutes})
    for key, label in CURVES.items():
        if any(key in row for row in timed):
            ap_axis.plot([row["minutes"] for row in timed], [row[key] for row in timed], "o-", label=label)
    ap_axis.set(xlabel="minutes since the start", ylabel="on the validation set", ylim=(0, 100))
    ap_axis.legend(loc="lower right")
    for axis in (loss_axis, ap_axis):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
