"""Denoising queries: true boxes and labels with noise, which the decoder learns to correct (DN-DETR, arXiv 2203.01305).

    N  images, M objects of all of them, M' the most of one image
    C  copies of an image's objects; each is a group of queries of its own
    S  denoising queries of an image, padding included: C M', twice as many with negatives

What each query has to answer is known, so that nothing is matched.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detr.modeling.matcher import Targets

SMALLEST = 1e-3  # extent of a box with noise, as a share of the image


@dataclass
class NoisedObjects:
    """The denoising queries of a batch, and what they should answer.

    boxes: (N, S, 4) cxcywh in [0, 1] of the unpadded image; labels: (N, S) int64 in [0, K)
    group: (S,) int64, the copy that each query belongs to, from 0
    padding: (N, S) bool, True where an image has fewer objects than the others
    copies: C
    image, query: (V,) int64, the queries that are no padding, image by image
    positive: (P,) int64 in [0, V), those of them that must find an object; target: (P,) int64 in [0, M), which one
    """

    boxes: Tensor
    labels: Tensor
    group: Tensor
    padding: Tensor
    copies: int
    image: Tensor
    query: Tensor
    positive: Tensor
    target: Tensor


@dataclass(frozen=True)
class Denoising:
    """How objects are turned into denoising queries.

    copies: C, fewer where they would be more than ``limit`` together; at least one
    box_noise: center and extent of a positive are changed by up to this share of the box's extent; those of a
        negative by up to twice as much, and at least this much
    label_noise: odds of another label
    negatives: whether beside every positive stands a negative, which must say no-object (DINO, arXiv 2203.03605)
    """

    num_classes: int
    copies: int = 4
    box_noise: float = 0.4
    label_noise: float = 0.2
    negatives: bool = True

    @torch.no_grad()
    def __call__(self, targets: Targets, limit: int) -> NoisedObjects:
        """Noise from the device's generator. Without any object, a single query of padding for each image is left."""
        device, sizes = targets.boxes.device, targets.sizes
        most = max([*sizes, 1])
        copies = max(min(self.copies, limit // most), 1)
        kinds = 2 if self.negatives else 1
        boxes = pad_sequence([*targets.boxes.split(sizes)], batch_first=True)  # (N, M', 4)
        labels = pad_sequence([*targets.labels.split(sizes)], batch_first=True)  # (N, M')
        if not boxes.shape[1]:
            boxes, labels = boxes.new_full((len(sizes), 1, 4), 0.5), labels.new_zeros(len(sizes), 1)
        boxes = boxes.repeat(1, copies * kinds, 1).view(len(sizes), copies, kinds, most, 4)
        labels = labels.repeat(1, copies * kinds)
        # On the host, where the sizes are known: the queries are ordered by copy, then positives before negatives.
        index = torch.arange(copies * kinds * most).view(copies, kinds, most)
        real = [index[..., :size].flatten() for size in sizes]
        image = torch.repeat_interleave(torch.tensor([len(x) for x in real]))
        query = torch.cat(real)
        is_positive = query // most % kinds == 0
        first = torch.tensor([0, *sizes]).cumsum(0)
        positive = is_positive.nonzero().squeeze(1)
        target = (first[image] + query % most)[positive]
        padding = torch.arange(most) >= torch.tensor(sizes)[:, None]  # (N, M')
        on_device = [
            x.to(device, non_blocking=True)
            for x in (index.flatten() // (kinds * most), padding.repeat(1, copies * kinds), image, query, positive, target)
        ]
        group, padding, image, query, positive, target = on_device
        return NoisedObjects(
            self._noised_boxes(boxes).flatten(1, 3), self._noised_labels(labels), group, padding, copies,
            image, query, positive, target,
        )

    def _noised_boxes(self, boxes: Tensor) -> Tensor:
        """boxes: (N, C, 1 or 2, M', 4), with positives before negatives; returns the same with noise."""
        noise = torch.rand_like(boxes)
        noise[:, :, 1:] += 1
        sign = torch.randint_like(boxes, 2) * 2 - 1
        noise = noise * sign * self.box_noise
        extent = boxes[..., 2:]
        center = boxes[..., :2] + noise[..., :2] * extent
        return torch.cat([center.clamp(0, 1), (extent * (1 + noise[..., 2:])).clamp(SMALLEST, 1)], dim=-1)

    def _noised_labels(self, labels: Tensor) -> Tensor:
        others = torch.randint_like(labels, self.num_classes)
        return torch.where(torch.rand(labels.shape, device=labels.device) < self.label_noise, others, labels)
