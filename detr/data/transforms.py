"""The original's image transforms as Detectron2 augmentations, and how any augmentation is applied to an image.

Resizing differs from Detectron2's: the original truncates the longer side where Detectron2 rounds it, which gives
another size for about 45 % of images, and takes the nearest pixel of a mask by its corner, not by its center.
Flips, crops and PIL's bilinear filter are Detectron2's own.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from PIL import Image

from detr.errors import InputError

# The shorter sides before a random crop (original training recipe): small enough that crops still show whole objects.
PRE_CROP_SIZES = (400, 500, 600)
# The original has no bound there. Only strips of more than 1 : 33 reach this one; without it, they fill the memory.
PRE_CROP_MAX_SIZE = 20_000


def resized_shape(height: int, width: int, size: int, max_size: float) -> tuple[int, int]:
    """The (height, width) in pixels that the original resizes an image to.

    size: the wanted shorter side; max_size: the upper bound of the longer one, ``math.inf`` for none
    """
    shorter, longer = float(min(height, width)), float(max(height, width))
    if longer / shorter * size > max_size:
        size = max(round(max_size * shorter / longer), 1)
    if size == shorter:
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


class ResizeTransform(T.ResizeTransform):
    """Detectron2's transform, but masks are resized as in the original."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) -> (new_h, new_w) of the same type, with the pixels that torch's mode "nearest" takes."""
        return segmentation[_nearest(self.h, self.new_h)][:, _nearest(self.w, self.new_w)]


@functools.lru_cache(maxsize=64)  # every mask of an image asks for the same
def _nearest(size: int, new_size: int) -> np.ndarray:
    """(new_size,): which of `size` pixels each of the new ones takes."""
    positions = torch.arange(size, dtype=torch.float32)[None, None]  # float32, in which the original resizes
    return F.interpolate(positions, size=new_size, mode="nearest")[0, 0].long().numpy()


class ResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's augmentation with the original's arithmetic."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """image: (H, W, C)."""
        height, width = image.shape[:2]
        if self.is_range:
            size = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            size = np.random.choice(self.short_edge_length)
        if size == 0:  # as in Detectron2: the image keeps its size
            return T.NoOpTransform()
        new_height, new_width = resized_shape(height, width, int(size), self.max_size)
        return ResizeTransform(height, width, new_height, new_width, Image.Resampling.BILINEAR)


def evaluation_augmentations(min_size: int, max_size: float) -> list[T.Augmentation]:
    """The augmentations of an image in evaluation. Raises InputError for a size that no image can have."""
    if min_size < 0 or max_size < 1:
        raise InputError(
            f"INPUT.MIN_SIZE_TEST is {min_size} and INPUT.MAX_SIZE_TEST is {max_size}: the one must be 0 (no resizing) "
            "or more, the other at least 1"
        )
    return [ResizeShortestEdge(min_size, max_size)]


def training_augmentations(
    min_sizes: Sequence[int],
    max_size: float,
    *,
    sampling: str = "choice",
    crop: tuple[str, Sequence[float]] | None = ("absolute_range", (384, 600)),
    flip: str = "horizontal",
) -> list[T.Augmentation]:
    """The original's training augmentations.

    min_sizes: the shorter sides to choose from ("choice"), or their bounds ("range")
    max_size: upper bound of the longer side
    crop: type and size of the random crop, as ``T.RandomCrop`` takes them; None for no crop. Every second image is
        cropped, after a resize to one of ``PRE_CROP_SIZES``
    flip: "horizontal" or "vertical", for every second image, or "none"
    """
    augmentations: list[T.Augmentation] = []
    if flip != "none":
        augmentations.append(T.RandomFlip(0.5, horizontal=flip == "horizontal", vertical=flip == "vertical"))
    if crop is not None:
        steps = [ResizeShortestEdge(PRE_CROP_SIZES, PRE_CROP_MAX_SIZE, "choice"), T.RandomCrop(*crop)]
        augmentations.append(T.RandomApply(T.AugmentationList(steps), prob=0.5))
    return [*augmentations, ResizeShortestEdge(min_sizes, max_size, sampling)]


class AnnotatedImage(T.AugInput):
    """An image and what augmentations may ask for beside it; they transform all of it in place.

    image: (H, W, C) uint8 or float
    boxes: (M, 4) float32, xyxy in pixels, as ``T.MinIoURandomCrop`` needs them; None without annotations
    sem_seg: (H, W) uint8, the class of every pixel, 255 where there is no object, as
        ``T.RandomCrop_CategoryAreaConstraint`` needs it
    """

    def __init__(self, image: np.ndarray, boxes: np.ndarray | None, draw_classes: Callable[[], np.ndarray]) -> None:
        """draw_classes: makes ``sem_seg`` of the image before all transforms"""
        self.image = image
        self.boxes = boxes
        self._draw_classes = draw_classes
        self._transforms: list[T.Transform] = []

    @property
    def sem_seg(self) -> np.ndarray:
        """Drawn only when an augmentation asks for it, since most do not."""
        return T.TransformList(self._transforms).apply_segmentation(self._draw_classes())

    def transform(self, tfm: T.Transform) -> None:
        """Applies ``tfm`` to image and boxes, and later to ``sem_seg``."""
        image = _transform_image(tfm, self.image)
        self.image = image if image.ndim == 3 else image[..., None]  # OpenCV leaves out a single channel
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        self._transforms.append(tfm)


def _transform_image(transform: T.Transform, image: np.ndarray) -> np.ndarray:
    if isinstance(transform, T.VFlipTransform | T.ScaleTransform):
        image = np.require(image, requirements="W")  # torch warns of a read-only array, as PIL gives
    # PIL takes the last of 2 or 4 channels for opacity and weighs the others by it; it refuses 5 channels.
    if image.shape[-1] == 3 or not isinstance(transform, T.ResizeTransform | T.ExtentTransform):
        return transform.apply_image(image)
    channels = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    return np.stack([transform.apply_image(channel) for channel in channels], axis=-1)


def transform_masks(transforms: T.TransformList, masks: Sequence[np.ndarray], size: tuple[int, int]) -> torch.Tensor:
    """(M, height, width) bool: masks after the transforms of their image.

    masks: M arrays (H, W) bool, of the image before
    size: (height, width) of the image after

    Padding belongs to no object, whatever value a transform fills segmentations with (255 by default).
    """
    pixels = torch.zeros(len(masks), *size, dtype=torch.bool)
    if not masks:
        return pixels
    padding = _transform_mask(transforms, np.zeros_like(masks[0]))
    inside = None if not padding.any() else ~padding
    for target, mask in zip(pixels.numpy(), masks, strict=True):
        transformed = _transform_mask(transforms, mask)
        target[:] = transformed if inside is None else transformed & inside
    return pixels


def _transform_mask(transforms: T.TransformList, mask: np.ndarray) -> np.ndarray:
    # Resizing and rotation do not take bool, and T.ExtentTransform blends values: half of 255 is the border then.
    return transforms.apply_segmentation(mask.astype(np.uint8) * 255) > 127
