"""From a Detectron2 dataset dict to what ``Detr`` takes, for boxes."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Instances

from detr.data.transforms import evaluation_augmentations, training_augmentations
from detr.errors import InputError


class DetrDatasetMapper:
    """Reads an image, transforms it as the original does, and makes its training targets.

    A callable for Detectron2's loaders: dataset dict -> the dict that ``Detr.forward`` describes.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation],
        image_format: str,
        num_classes: int,
    ) -> None:
        """is_train: whether annotations become ``instances``; num_classes: K, to check labels against."""
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Raises InputError for a crop or flip that the original's recipe does not know."""
        return {
            "is_train": is_train,
            "augmentations": _training(cfg) if is_train else _test(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises InputError, naming the file, for an unreadable image, a wrong size or a label outside [0, K)."""
        x = dict(dataset_dict)  # the loader keeps the original; what changes below is replaced, not changed
        image = read_image(x, self.image_format)
        x["height"], x["width"] = image.shape[:2]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        height, width = augmented.image.shape[:2]
        x["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))  # uint8
        annotations = x.pop("annotations", [])
        if self.is_train:
            objects = [obj for obj in annotations if not obj.get("iscrowd", 0)]  # a crowd is no instance to find
            check_labels(objects, self.num_classes, x["file_name"])
            boxes = [
                detection_utils.transform_instance_annotations(_boxes_only(obj), transforms, (height, width))
                for obj in objects
            ]
            instances = detection_utils.annotations_to_instances(boxes, (height, width))
            x["instances"] = drop_degenerate(instances)
        return x


def read_image(dataset_dict: dict[str, Any], image_format: str) -> np.ndarray:
    """The image (H, W, 3) uint8, upright (EXIF). Raises InputError that names the file and the remedy."""
    path = dataset_dict["file_name"]
    try:
        image = detection_utils.read_image(path, format=image_format)
    except Exception as error:  # PIL and the path handlers raise many kinds
        raise InputError(
            f"cannot read the image {path} ({type(error).__name__}: {error}): restore the file or take it out of "
            "the annotations"
        ) from error
    problem = size_problem(dataset_dict, width=image.shape[1], height=image.shape[0])
    if problem:
        raise InputError(problem)
    return image


def size_problem(dataset_dict: dict[str, Any], width: int, height: int) -> str | None:
    """What is wrong where an image has not the size that its annotation says; None where it has."""
    said = dataset_dict.get("width", width), dataset_dict.get("height", height)
    if said == (width, height):
        return None
    return (
        f"the image {dataset_dict['file_name']} is {width} x {height} pixels (width x height), but its annotation says "
        f"{said[0]} x {said[1]}: boxes would be misplaced; mend one of them"
    )


def check_labels(annotations: list[dict[str, Any]], num_classes: int, where: str) -> None:
    """Raises InputError where a category id is outside [0, num_classes)."""
    for obj in annotations:
        if not 0 <= obj["category_id"] < num_classes:
            raise InputError(
                f"{where} has an object of category {obj['category_id']}, outside [0, {num_classes}): set "
                "MODEL.DETR.NUM_CLASSES to the data set's number of classes, and map its ids to 0, 1, 2, ... "
                "when it is registered"
            )


def drop_degenerate(instances: Instances) -> Instances:
    """Leaves out boxes without an area, in the annotation or after a crop: their GIoU is not defined."""
    x1, y1, x2, y2 = instances.gt_boxes.tensor.unbind(-1)
    return instances[(x2 > x1) & (y2 > y1)]


def _boxes_only(annotation: dict[str, Any]) -> dict[str, Any]:
    return {key: annotation[key] for key in ("bbox", "bbox_mode", "category_id")}


def _training(cfg: CfgNode) -> list[T.Augmentation]:
    if cfg.INPUT.RANDOM_FLIP not in ("horizontal", "none"):
        raise InputError(f"INPUT.RANDOM_FLIP is {cfg.INPUT.RANDOM_FLIP!r}: DETR knows horizontal and none")
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE != "absolute_range":
        raise InputError(f"INPUT.CROP.TYPE is {cfg.INPUT.CROP.TYPE!r}: DETR crops with absolute_range")
    return training_augmentations(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        crop_range=tuple(cfg.INPUT.CROP.SIZE) if cfg.INPUT.CROP.ENABLED else None,
        flip=cfg.INPUT.RANDOM_FLIP == "horizontal",
    )


def _test(cfg: CfgNode) -> list[T.Augmentation]:
    return evaluation_augmentations(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
