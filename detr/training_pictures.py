"""Sheets of pictures of a training: what the network was shown, and what it finds on the test set."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import convert_image_to_rgb

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.images import read_image
from detr.data.loading import load_dataset
from detr.data.metadata import is_panoptic
from detr.data.panoptic_mapper import read_segment_ids
from detr.visualization import draw_boxes, sheet, truth_beside_detections, truth_beside_panoptic

PICTURES = 8


def predictions_sheet(cfg: CfgNode, model: torch.nn.Module, threshold: float = 0.5) -> np.ndarray:
    """Ground truth beside predictions, two pairs a row: (H, W, 3) uint8.

    Of the first images of DATASETS.TEST[0] that have the most objects among the first hundred, in their order.
    threshold: the least score of a box that is drawn
    """
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    mapper = DetrDatasetMapper(cfg, is_train=False)
    panoptic = is_panoptic(name)
    model.eval()
    pairs = []
    for x in _busy(load_dataset(name), "segments_info" if panoptic else "annotations"):
        image, (output,) = read_image(x["file_name"], "RGB"), model([mapper(x)])
        if "panoptic_seg" in output:
            truth = read_segment_ids(x["pan_seg_file_name"]), x["segments_info"]
            pairs.append(truth_beside_panoptic(image, truth, output["panoptic_seg"], metadata))
        else:
            pairs.append(truth_beside_detections(image, x["annotations"], output["instances"], metadata, threshold))
    return sheet(pairs, columns=2)


def _busy(dicts: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Up to ``PICTURES`` images with two objects or more, from the start; others only where there are too few."""
    more = [x for x in dicts if len(x[key]) > 1]
    return (more + [x for x in dicts if len(x[key]) <= 1])[:PICTURES]


def targets_sheet(cfg: CfgNode, columns: int = 4) -> np.ndarray:
    """The first images of DATASETS.TRAIN as the network is shown them, augmented, with their boxes: (H, W, 3) uint8.

    numpy's random numbers, which the augmentations take, go on afterwards as if nothing had been drawn.
    """
    dicts = [x for name in cfg.DATASETS.TRAIN for x in load_dataset(name)]
    mapper = DetrDatasetMapper(cfg, is_train=True)
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    state = np.random.get_state()
    try:
        shown = [mapper(x) for x in _busy(dicts, "annotations")]
    finally:
        np.random.set_state(state)
    return sheet([draw_targets(x, cfg.INPUT.FORMAT, metadata) for x in shown], columns)


def draw_targets(x: dict[str, Any], image_format: str, metadata: Metadata) -> np.ndarray:
    """x: as ``DetrDatasetMapper`` returns it for training; image_format: as INPUT.FORMAT."""
    image = np.ascontiguousarray(convert_image_to_rgb(x["image"].permute(1, 2, 0), image_format))
    instances = x["instances"]
    boxes = instances.gt_boxes.tensor.numpy()
    return draw_boxes(image.astype(np.uint8), boxes, instances.gt_classes.tolist(), metadata)
