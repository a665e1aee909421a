"""From a Detectron2 dataset dict to what ``Detr`` takes: an image, and boxes and masks of its objects."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances

from detr.data.annotations import check_labels, clean_annotations, clean_image, decide
from detr.data.boxes import clip_boxes, has_area
from detr.data.images import read_image
from detr.data.masks import draw_classes, rasterize
from detr.data.transforms import AnnotatedImage, evaluation_augmentations, training_augmentations, transform_masks
from detr.errors import InputError

FLIPS = ("none", "horizontal", "vertical")
SAMPLINGS = ("choice", "range")


def _are_fractions(a: float, b: float) -> bool:
    return 0 < a <= 1 and 0 < b <= 1


def _are_pixels(a: float, b: float) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a >= 1 and b >= 1


# INPUT.CROP.TYPE -> what INPUT.CROP.SIZE is then, and its check
CROP_SIZES: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "relative": ("height and width as fractions in (0, 1]", _are_fractions),
    "relative_range": ("the smallest height and width as fractions in (0, 1]", _are_fractions),
    "absolute": ("height and width in whole pixels", _are_pixels),
    "absolute_range": ("the smallest and the largest side in whole pixels", lambda a, b: _are_pixels(a, b) and a <= b),
}


class DetrDatasetMapper:
    """Reads an image, transforms it and its annotations, and makes its training targets.

    A callable for Detectron2's loaders: dataset dict -> the dict that ``Detr.forward`` describes.
    """

    annotation_keys: tuple[str, ...] = ("annotations",)  # what ``objects`` reads; not passed on to the model

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        num_classes: int,
        masks: bool = False,
    ) -> None:
        """
        is_train: whether annotations become ``instances``
        augmentations: any of Detectron2's or the user's own, applied in this order; ``make_instances`` says what
            becomes of boxes
        image_format: as INPUT.FORMAT
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
        """The original's augmentations with the values of INPUT. Raises InputError for impossible values."""
        if is_train:
            check_input_keys(cfg)
            augmentations = _training(cfg)
        else:
            augmentations = evaluation_augmentations(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": cfg.MODEL.DETR.NUM_CLASSES,
            "masks": cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises InputError that names the file, for an unreadable image, a wrong size, or as ``objects`` does."""
        x = clean_image(dataset_dict)  # a copy; the loader's dict stays as it is
        image = self.read(x)
        height, width = image.shape[:2]
        problem = size_problem(x, width, height)
        if problem:
            raise InputError(problem)
        x["height"], x["width"] = height, width
        objects = self.objects(x) if self.is_train else []
        fates = decide(objects, height, width)
        objects, boxes = _select(objects, fates.boxes, fates.objects)
        sem_seg = partial(draw_classes, objects, boxes, (height, width), x["file_name"])
        annotated = AnnotatedImage(image, boxes if self.is_train else None, sem_seg)
        transforms = self.augmentations(annotated)
        x["image"] = torch.from_numpy(np.ascontiguousarray(annotated.image.transpose(2, 0, 1)))
        if self.is_train:
            x["instances"] = make_instances(objects, boxes, transforms, annotated.image.shape[:2], self.masks)
        for key in self.annotation_keys:
            x.pop(key, None)
        return x

    def read(self, x: dict[str, Any]) -> np.ndarray:
        """The image (H, W, C) uint8 or float32 in 0..255, upright. Raises InputError as ``read_image``.

        Override it for files that PIL cannot read, for other ranges of pixels and for other channels; for these,
        MODEL.PIXEL_MEAN and PIXEL_STD need C values.
        """
        return read_image(x["file_name"], self.image_format)

    def objects(self, x: dict[str, Any]) -> list[dict[str, Any]]:
        """The objects to learn, in pixels of the image file; x also has the image's height and width.

        Each is a dict with ``bbox``, ``bbox_mode``, ``category_id``, and with masks on ``segmentation`` (H, W) bool.
        Raises InputError for a bad box, a label outside [0, K), or a segmentation that is missing or damaged.
        """
        where, size = x["file_name"], (x["height"], x["width"])
        annotations = clean_annotations(x.get("annotations", []), size, where)
        objects = [obj for obj in annotations if not obj["iscrowd"]]  # a crowd is no instance
        check_labels(objects, self.num_classes, where)
        return (
            [{**obj, "segmentation": rasterize(obj.get("segmentation"), size, where)} for obj in objects]
            if self.masks
            else objects
        )


def make_instances(
    objects: Sequence[dict[str, Any]],
    boxes: np.ndarray,
    transforms: T.TransformList,
    size: tuple[int, int],
    masks: bool,
) -> Instances:
    """The targets of a transformed image.

    objects: as ``DetrDatasetMapper.objects`` returns them; their boxes (M, 4) xyxy in pixels, inside the image
    size: (height, width) of the transformed image
    masks: whether the objects have a ``segmentation``

    Returns ``gt_boxes`` xyxy in pixels, ``gt_classes`` int64, and with masks ``gt_masks``, of the objects whose box
    still has an area inside the image. As in the original, boxes are transformed as boxes and never fitted to masks.
    So an object whose box reaches into a crop keeps an empty mask if its pixels do not. After a rotation the box is
    the upright one around the rotated box, which is larger than one around the object.
    """
    boxes = clip_boxes(transforms.apply_box(boxes).astype(np.float32), *size)
    objects, boxes = _select(objects, boxes, has_area(boxes))
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes))
    instances.gt_classes = torch.tensor([int(obj["category_id"]) for obj in objects], dtype=torch.int64)
    if masks:
        instances.gt_masks = BitMasks(transform_masks(transforms, [obj["segmentation"] for obj in objects], size))
    return instances


def size_problem(dataset_dict: dict[str, Any], width: int, height: int) -> str | None:
    """The problem of an image that has another size than its dict gives; None where there is none."""
    annotated = dataset_dict.get("width", width), dataset_dict.get("height", height)
    if annotated == (width, height):
        return None
    return (
        f"the image {dataset_dict['file_name']} is {width} x {height} pixels (width x height), but its annotation says "
        f"{annotated[0]} x {annotated[1]}: boxes would be misplaced; correct one of them"
    )


def check_input_keys(cfg: CfgNode) -> None:
    """Raises InputError for values of INPUT that no training augmentation can have."""
    keys, crop = cfg.INPUT, cfg.INPUT.CROP
    for key, known in (("RANDOM_FLIP", FLIPS), ("MIN_SIZE_TRAIN_SAMPLING", SAMPLINGS)):
        if keys[key] not in known:
            raise InputError(f"INPUT.{key} is {keys[key]!r}: it must be one of {', '.join(known)}")
    if not keys.MIN_SIZE_TRAIN or (keys.MIN_SIZE_TRAIN_SAMPLING == "range" and len(keys.MIN_SIZE_TRAIN) != 2):
        wanted = "the smallest and the largest" if keys.MIN_SIZE_TRAIN_SAMPLING == "range" else "at least one size"
        raise InputError(f"INPUT.MIN_SIZE_TRAIN is {keys.MIN_SIZE_TRAIN}: it must hold {wanted}")
    if min(keys.MIN_SIZE_TRAIN) < 0 or keys.MAX_SIZE_TRAIN < 1:
        raise InputError(
            f"INPUT.MIN_SIZE_TRAIN is {keys.MIN_SIZE_TRAIN} and INPUT.MAX_SIZE_TRAIN is {keys.MAX_SIZE_TRAIN}: sizes "
            "must be 0 (no resizing) or more, their bound at least 1"
        )
    if not crop.ENABLED:
        return
    if crop.TYPE not in CROP_SIZES:
        raise InputError(f"INPUT.CROP.TYPE is {crop.TYPE!r}: it must be one of {', '.join(CROP_SIZES)}")
    wanted, fits = CROP_SIZES[crop.TYPE]
    if len(crop.SIZE) != 2 or not fits(*crop.SIZE):
        raise InputError(f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}: with INPUT.CROP.TYPE {crop.TYPE} it must be {wanted}")


def _select(
    objects: Sequence[dict[str, Any]], boxes: np.ndarray, keep: np.ndarray
) -> tuple[list[dict[str, Any]], np.ndarray]:
    return [obj for obj, kept in zip(objects, keep, strict=True) if kept], boxes[keep]


def _training(cfg: CfgNode) -> list[T.Augmentation]:
    crop = cfg.INPUT.CROP
    return training_augmentations(
        cfg.INPUT.MIN_SIZE_TRAIN,
        cfg.INPUT.MAX_SIZE_TRAIN,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        crop=(crop.TYPE, tuple(crop.SIZE)) if crop.ENABLED else None,
        flip=cfg.INPUT.RANDOM_FLIP,
    )
