"""The original's image transforms as Detectron2 augmentations: the same sizes, the same pixels.

Detectron2 rounds the longer side where the original truncates it, which gives another size for about
45 % of images, and takes the nearest pixel of a mask by its center where the original takes it by its corner;
everything else (flip, crop, PIL's bilinear filter) is Detectron2's own.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from PIL import Image

# The scales before a random crop (original training recipe): small enough that a crop still shows objects whole.
PRE_CROP_SIZES = (400, 500, 600)


def resized_shape(height: int, width: int, size: int, max_size: float) -> tuple[int, int]:
    """The (height, width) in pixels that the original resizes an image to.

    size: the wanted shorter side; max_size: the upper bound of the longer one, ``math.inf`` for none
    """
    shorter, longer = float(min(height, width)), float(max(height, width))
    if longer / shorter * size > max_size:
        size = round(max_size * shorter / longer)
    if size == shorter:
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


class ResizeTransform(T.ResizeTransform):
    """Detectron2's transform with masks resized as the original's."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) -> (new_h, new_w) of the same type, each pixel that of torch's mode "nearest"."""
        return segmentation[_nearest(self.h, self.new_h)][:, _nearest(self.w, self.new_w)]


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
        if size == 0:  # Detectron2's way to say "leave the image alone"
            return T.NoOpTransform()
        new_height, new_width = resized_shape(height, width, int(size), self.max_size)
        return ResizeTransform(height, width, new_height, new_width, Image.Resampling.BILINEAR)


def evaluation_augmentations(min_size: int, max_size: float) -> list[T.Augmentation]:
    """What an image goes through in evaluation."""
    return [ResizeShortestEdge(min_size, max_size)]


def training_augmentations(
    min_sizes: Sequence[int],
    max_size: float,
    *,
    sampling: str = "choice",
    crop_range: tuple[int, int] | None = (384, 600),
    flip: bool = True,
) -> list[T.Augmentation]:
    """The original's training augmentations.

    min_sizes: the shorter sides to choose from ("choice"), or their bounds ("range")
    max_size: upper bound of the longer side
    crop_range: smallest and largest side of the random crop that every second image gets, in pixels
        after a resize to one of ``PRE_CROP_SIZES``; None for no crops
    flip: whether every second image is mirrored
    """
    augmentations: list[T.Augmentation] = [T.RandomFlip(0.5)] if flip else []
    if crop_range is not None:
        crop = [
            ResizeShortestEdge(PRE_CROP_SIZES, np.inf, "choice"),
            T.RandomCrop("absolute_range", crop_range),
        ]
        augmentations.append(T.RandomApply(T.AugmentationList(crop), prob=0.5))
    return [*augmentations, ResizeShortestEdge(min_sizes, max_size, sampling)]
