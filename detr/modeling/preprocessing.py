"""From Detectron2's list of dicts to tensors: the normalized batch of images, and its targets.

N  images, H x W their padded size in pixels, C channels
M  ground-truth objects of the batch, K classes without no-object
"""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from detr.errors import InputError
from detr.modeling.card import HasCard
from detr.modeling.matcher import Targets


class BaseDetr(HasCard, nn.Module):
    """What a DETR has in common with one that was exported: how images go in, and on which device."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...], images_alone: bool = False) -> None:
        """pixel_mean, pixel_std: of the image's channels, in the range 0..255
        images_alone: whether in inference only images of one size share a batch, so that none is padded
        """
        super().__init__()
        self.images_alone = images_alone
        self.register_buffer("pixel_mean", per_channel(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", per_channel(pixel_std), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def must_part(self, batched_inputs: list[dict[str, Any]]) -> bool:
        """Whether these may not share a batch (see ``images_alone``)."""
        return self.images_alone and len({x["image"].shape for x in batched_inputs}) > 1


def per_channel(values: Sequence[float]) -> Tensor:
    """Mean or deviation of C channels in the range 0..255 -> (C, 1, 1) in 0..1, as ``normalize_images`` takes it."""
    return torch.tensor([value / 255 for value in values]).view(-1, 1, 1)


def normalize_images(
    batched_inputs: list[dict[str, Any]],
    mean: Tensor,
    std: Tensor,
    size_divisibility: int,
    padding_constraints: dict[str, int],
) -> ImageList:
    """Normalizes the images and pads them with zeros, right and below, to one size: (N, C, H, W).

    batched_inputs: ``image`` (C, H_i, W_i) uint8 or float in the range 0..255
    mean, std: (C, 1, 1) in 0..1, on the device that the batch is made on
    size_divisibility, padding_constraints: of the backbone, as Detectron2 has them

    Raises InputError for an image with another number of channels.
    """
    images = []
    for x in batched_inputs:
        image = x["image"].to(mean.device, non_blocking=True)
        if len(image) != len(mean):
            raise InputError(
                f"{x.get('file_name', 'an image')} has {len(image)} channels, but MODEL.PIXEL_MEAN and PIXEL_STD have "
                f"{len(mean)} values: give one for each channel that the mapper reads"
            )
        # Divided by 255 first, an image gives the original's tensor to the last bit.
        images.append(image.float().div(255).sub_(mean).div_(std))
    return ImageList.from_tensors(images, size_divisibility, padding_constraints=padding_constraints)


def make_targets(
    batched_inputs: list[dict[str, Any]],
    *,
    num_classes: int,
    padded_size: tuple[int, int] | None,
    device: torch.device,
) -> Targets:
    """Ground truth of a batch: boxes as cxcywh in [0, 1] of each unpadded image.

    batched_inputs: ``instances`` as ``Detr.forward`` describes them
    num_classes: K
    padded_size: (H, W), to which masks are padded; None for a model without masks

    Raises InputError for labels outside [0, K), and for objects without masks where masks are wanted.
    """
    instances: list[Instances] = [x["instances"] for x in batched_inputs]
    labels, boxes = [], []
    for x, truth in zip(batched_inputs, instances, strict=True):
        _check_labels(truth.gt_classes, num_classes, x.get("file_name", "an image"))
        height, width = truth.image_size
        scale = truth.gt_boxes.tensor.new_tensor([width, height, width, height])
        labels.append(truth.gt_classes)
        boxes.append(box_convert(truth.gt_boxes.tensor, "xyxy", "cxcywh") / scale)
    return Targets(
        labels=torch.cat(labels).to(device, non_blocking=True),
        boxes=torch.cat(boxes).to(device, non_blocking=True),
        sizes=[len(x) for x in instances],
        masks=None if padded_size is None else _pad_masks(instances, padded_size, device),
    )


def _check_labels(labels: Tensor, num_classes: int, where: str) -> None:
    # K itself would silently train as no-object; a larger one crashes a CUDA kernel later. Labels that are on a GPU
    # already are not checked, because that would synchronize.
    if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise InputError(
            f"{where} has the labels {sorted(set(labels.tolist()))}, outside [0, {num_classes}): set "
            "MODEL.DETR.NUM_CLASSES to the data set's number of classes"
        )


def _pad_masks(instances: list[Instances], padded_size: tuple[int, int], device: torch.device) -> Tensor:
    """(M, H, W) bool, False in the padding."""
    masks = torch.zeros(sum(map(len, instances)), *padded_size, dtype=torch.bool, device=device)
    start = 0
    for truth in instances:
        if not truth.has("gt_masks") or not isinstance(truth.gt_masks, BitMasks):
            kind = type(truth.gt_masks).__name__ if truth.has("gt_masks") else "nothing"
            raise InputError(
                f"MODEL.MASK_ON is True, but the training targets have {kind} as gt_masks, and not BitMasks: the "
                "data set's mapper must give them, as detr.data's do"
            )
        height, width = truth.image_size
        end = start + len(truth)
        masks[start:end, :height, :width] = truth.gt_masks.tensor.to(device, non_blocking=True)
        start = end
    return masks
