"""From a Detectron2 dataset dict to what ``Detr`` takes: boxes and masks of annotated objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances

from detr.data.masks import check_segmentations, rasterize
from detr.data.transforms import evaluation_augmentations, training_augmentations
from detr.errors import InputError


class DetrDatasetMapper:
    """Reads an image, transforms it as the original does, and makes its training targets.

    A callable for Detectron2's loaders: dataset dict -> the dict that ``Detr.forward`` describes.
    """

    annotation_keys: tuple[str, ...] = ("annotations",)  # of the dict, where ``objects`` finds them

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation],
        image_format: str,
        num_classes: int,
        masks: bool = False,
    ) -> None:
        """
        is_train: whether annotations become ``instances``
        num_classes: K, to check labels against
        masks: whether ``instances`` hold ``gt_masks`` beside ``gt_boxes`` and ``gt_classes``
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_classes = num_classes
        self.masks = masks

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Raises InputError for a crop or flip that the original's recipe does not know."""
        return {
            "is_train": is_train,
            "augmentations": _training(cfg) if is_train else _test(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
            "masks": cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises InputError that names the file, for an unreadable image, a wrong size, or as ``objects`` does."""
        x = dict(dataset_dict)  # the loader keeps the original; what changes below is replaced, not changed
        image = read_image(x, self.image_format)
        x["height"], x["width"] = image.shape[:2]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        x["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))  # uint8
        if self.is_train:
            x["instances"] = make_instances(self.objects(x), transforms, augmented.image.shape[:2], self.masks)
        for key in self.annotation_keys:
            x.pop(key, None)
        return x

    def objects(self, x: dict[str, Any]) -> list[dict[str, Any]]:
        """The objects to learn, in pixels of the image as it is in its file; x also has its height and width.

        Each is a dict with ``bbox``, ``bbox_mode``, ``category_id``, and where masks are on ``segmentation``
        (H, W) bool. Raises InputError for a label outside [0, K) or a segmentation that is missing or damaged.
        """
        found = [obj for obj in x.get("annotations", []) if not obj.get("iscrowd", 0)]  # a crowd is no instance
        check_labels(found, self.num_classes, x["file_name"])
        if not self.masks:
            return found
        check_segmentations(found, x["file_name"])
        size = x["height"], x["width"]
        return [{**obj, "segmentation": rasterize(obj["segmentation"], size, x["file_name"])} for obj in found]


def make_instances(
    objects: Sequence[dict[str, Any]], transforms: T.TransformList, size: tuple[int, int], masks: bool
) -> Instances:
    """The targets of a transformed image, of ``size`` (height, width); M objects with a box that has an area.

    objects: as ``DetrDatasetMapper.objects`` returns them
    masks: whether they have a ``segmentation``

    Returns ``gt_boxes`` (M, 4) xyxy in pixels, ``gt_classes`` (M,) int64, and with masks ``gt_masks``
    (M, height, width). As in the original boxes are transformed as boxes, never fitted to masks again, and decide
    alone which objects a crop leaves: one whose box reaches into it where its mask does not keeps an empty mask.
    """
    boxes = [detection_utils.transform_instance_annotations(_box_of(obj), transforms, size) for obj in objects]
    instances = detection_utils.annotations_to_instances(boxes, size)
    if masks:
        pixels = torch.zeros(len(objects), *size, dtype=torch.bool)
        for mask, obj in zip(pixels.numpy(), objects, strict=True):
            mask[:] = transforms.apply_segmentation(obj["segmentation"])
        instances.gt_masks = BitMasks(pixels)
    return drop_degenerate(instances)


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


def _box_of(annotation: dict[str, Any]) -> dict[str, Any]:
    # As floats: a box of integers would be cut off to integers after every step.
    bbox = [float(value) for value in annotation["bbox"]]
    return {"bbox": bbox, "bbox_mode": annotation["bbox_mode"], "category_id": annotation["category_id"]}


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
