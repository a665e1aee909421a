"""From the images of a batch to the one tensor that the network reads."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor


def per_channel(values: Sequence[float]) -> Tensor:
    """Mean or deviation of C channels in the range 0..255 -> (C, 1, 1) in 0..1, as ``normalised_batch`` takes it."""
    return torch.tensor([value / 255 for value in values]).view(-1, 1, 1)


def normalised_batch(
    batched_inputs: list[dict[str, Any]],
    mean: Tensor,
    std: Tensor,
    size_divisibility: int,
    padding_constraints: dict[str, int],
) -> ImageList:
    """Normalises the images and pads them with zeros, right and below, to one size: (N, 3, H, W).

    batched_inputs: ``image`` (3, H_i, W_i) uint8 or float in the range 0..255
    mean, std: (3, 1, 1) in 0..1, on the device that the batch is made on
    size_divisibility, padding_constraints: of the backbone, as Detectron2 has them
    """
    images = [x["image"].to(mean.device, non_blocking=True) for x in batched_inputs]
    # Divided by 255 first, an image gives the original's tensor to the last bit.
    images = [x.float().div(255).sub_(mean).div_(std) for x in images]
    return ImageList.from_tensors(images, size_divisibility, padding_constraints=padding_constraints)
