"""Sheets of pictures: what a network is shown in training, and predictions beside ground truth."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import BoxMode, Instances
from PIL import Image, ImageDraw
from torch import Tensor

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.images import read_image
from detr.data.loading import load_dataset
from detr.data.metadata import class_names, is_panoptic
from detr.data.panoptic_mapper import read_segment_ids
from detr.pictures.drawing import draw_instances, draw_objects, draw_segments, label_text
from detr.pictures.files import write_whole

PICTURES = 8  # on a sheet
MIN_SHOWN_SIDE, MAX_SHOWN_SIDE = 384, 640  # pixels; smaller images are enlarged, so that labels can be read
GAP = 8  # pixels between pictures
CAPTION = 24  # pixels of height

Names = Sequence[str] | None


def predictions_sheet(cfg: CfgNode, model: torch.nn.Module, threshold: float = 0.5) -> np.ndarray:
    """Ground truth beside predictions, two pairs a row: (H, W, 3) uint8, RGB.

    Of the first images of DATASETS.TEST[0] with two objects or more, as far as there are such images.
    model: is set to evaluation mode
    threshold: the least score of a box that is drawn
    """
    name = cfg.DATASETS.TEST[0]
    mapper = DetrDatasetMapper(cfg, is_train=False)
    panoptic = is_panoptic(name)
    dicts = load_dataset(name)
    names = class_names(name)
    model.eval()
    pairs = []
    for x in _busy(dicts, "segments_info" if panoptic else "annotations"):
        image, (output,) = read_image(x["file_name"], "RGB"), model([mapper(x)])
        if "panoptic_seg" in output:
            truth = read_segment_ids(x["pan_seg_file_name"]), x["segments_info"]
            pairs.append(truth_beside_panoptic(image, truth, output["panoptic_seg"], names))
        else:
            pairs.append(truth_beside_detections(image, x["annotations"], output["instances"], names, threshold))
    return sheet(pairs, columns=2)


def targets_sheet(cfg: CfgNode, columns: int = 4) -> np.ndarray:
    """Images of DATASETS.TRAIN as the network is shown them, augmented, with their boxes: (H, W, 3) uint8, RGB.

    numpy's random numbers, which augmentations take, go on afterwards as if nothing had been drawn.
    """
    dicts = [x for name in cfg.DATASETS.TRAIN for x in load_dataset(name)]
    mapper, names = DetrDatasetMapper(cfg, is_train=True), class_names(cfg.DATASETS.TRAIN[0])
    state = np.random.get_state()
    try:
        shown = [mapper(x) for x in _busy(dicts, "annotations")]
    finally:
        np.random.set_state(state)
    return sheet([draw_targets(x, cfg.INPUT.FORMAT, names) for x in shown], columns)


def _busy(dicts: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The first images with two objects or more, and others only where there are too few of these."""
    busy = [x for x in dicts if len(x[key]) > 1]
    return (busy + [x for x in dicts if len(x[key]) <= 1])[:PICTURES]


def draw_targets(x: dict[str, Any], image_format: str, names: Names, scale: float | None = None) -> np.ndarray:
    """The picture (H', W', 3) uint8, RGB.

    x: as ``DetrDatasetMapper`` returns it in training; image_format: as INPUT.FORMAT
    scale: of the picture to the image; by default as it fits a sheet
    """
    image = np.ascontiguousarray(convert_image_to_rgb(x["image"].permute(1, 2, 0), image_format)).astype(np.uint8)
    targets = x["instances"]
    classes = targets.gt_classes.tolist()
    masks = targets.gt_masks.tensor if targets.has("gt_masks") else None
    labels = [label_text(index, names) for index in classes]
    scale = _scale(image) if scale is None else scale
    return draw_objects(image, targets.gt_boxes.tensor.numpy(), classes, labels, masks, scale)


def truth_beside_detections(
    image: np.ndarray,
    annotations: Sequence[dict[str, Any]],
    detections: Instances,
    names: Names,
    threshold: float = 0.5,
) -> np.ndarray:
    """One row of the sheet: the ground truth, then the predictions with a score of ``threshold`` or more.

    image: (H, W, 3) RGB uint8; names: of the classes
    """
    objects = [obj for obj in annotations if not obj.get("iscrowd", 0)]
    truth = [BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in objects]
    classes = [obj["category_id"] for obj in objects]
    labels = [label_text(index, names) for index in classes]
    left = draw_objects(image, np.array(truth).reshape(-1, 4), classes, labels, scale=_scale(image))
    detections = detections.to("cpu")
    right = draw_instances(image, detections[detections.scores >= threshold], names, _scale(image))
    captions = ("ground truth", f"predictions, scores of {threshold:.2f} or more")
    return sheet([captioned(left, captions[0]), captioned(right, captions[1])], columns=2)


def truth_beside_panoptic(
    image: np.ndarray,
    truth: tuple[np.ndarray, Sequence[dict[str, Any]]],
    predicted: tuple[Tensor, Sequence[dict[str, Any]]],
    names: Names,
) -> np.ndarray:
    """One row of the sheet: the ground truth, then the predicted panoptic map.

    image: (H, W, 3) RGB uint8
    truth, predicted: segment ids (H, W), and a dict per segment with "id" and "category_id"
    names: of things and stuff
    """
    left = draw_segments(image, torch.from_numpy(truth[0].astype(np.int32)), truth[1], names, _scale(image))
    right = draw_segments(image, predicted[0].cpu(), predicted[1], names, _scale(image))
    return sheet([captioned(left, "ground truth"), captioned(right, "predicted panoptic map")], columns=2)


def _scale(image: np.ndarray) -> float:
    """Of a picture to its image, so that its shorter side is in a range that fits a sheet."""
    side = min(image.shape[:2])
    return min(max(1.0, MIN_SHOWN_SIDE / side), MAX_SHOWN_SIDE / side)


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    strip = Image.new("RGB", (picture.shape[1], CAPTION), "white")
    ImageDraw.Draw(strip).text((4, 2), text, fill="black", font_size=CAPTION - 8)
    return np.concatenate([np.asarray(strip), picture])


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Lays pictures (H_i, W_i, 3) out in rows on white. A row is as high as its highest picture."""
    width = max(picture.shape[1] for picture in pictures)
    lines = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.shape[0] for picture in line) for line in lines]
    size = sum(heights) + (len(lines) - 1) * GAP, columns * width + (columns - 1) * GAP
    canvas, top = np.full((*size, 3), 255, dtype=np.uint8), 0
    for line, height in zip(lines, heights, strict=True):
        for index, picture in enumerate(line):
            left = index * (width + GAP)
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height + GAP
    return canvas


def save_picture(picture: np.ndarray, path: str | os.PathLike[str]) -> None:
    """picture: (H, W, 3) uint8, RGB. Raises InputError where it cannot be written, or not in a format of that name."""
    write_whole(Path(path), lambda new: Image.fromarray(picture).save(new, quality=92))
