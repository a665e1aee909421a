"""Denoising queries: true boxes and labels with noise, which the decoder learns to correct (DN-DETR, arXiv 2203.01305).

    N  images, M objects of all of them, M_i of image i
    S  denoising queries of an image, padding included
    V  denoising queries of the batch that are no padding, P of them positives

An image's objects are copied, and each copy is a group of queries of its own. What a query has to answer is known, so
that nothing is matched.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from detr.modeling.matcher import Targets

SMALLEST = 1e-3  # extent of a box with noise, as a share of the image


@dataclass
class NoisedObjects:
    """The denoising queries of a batch, and what they have to answer.

    boxes: (N, S, 4) cxcywh in [0, 1] of the unpadded image; labels: (N, S) int64 in [0, K)
    copy: (N, S) int64 from 0, the group that each query belongs to within its image; -1 for padding
    image, query: (V,) int64, all that are no padding, image by image
    positive: (P,) int64 in [0, V), those of them that must find an object; target: (P,) int64 in [0, M), which one
    """

    boxes: Tensor
    labels: Tensor
    copy: Tensor
    image: Tensor
    query: Tensor
    positive: Tensor
    target: Tensor


@dataclass(frozen=True)
class Denoising:
    """How objects become denoising queries.

    num_classes: K, without no-object
    copies: of each image's objects. An image with more objects than the batch's mean has fewer copies, but at least
        one, so that the others need little padding; so has one whose copies would be more than ``limit`` objects
    box_noise: by how much center and extent of a box change at most, as a share of the extent; of a negative's box
        at least so much, and at most twice as much
    label_noise: odds of a random label
    negatives: whether beside every positive there is a negative, which must say no-object (DINO, arXiv 2203.03605)
    """

    num_classes: int
    copies: int = 4
    box_noise: float = 0.4
    label_noise: float = 0.2
    negatives: bool = True

    @torch.no_grad()
    def __call__(self, targets: Targets, limit: int) -> NoisedObjects:
        """A batch without objects has one query of padding for each image, so that every parameter is used."""
        sizes, boxes, labels = targets.sizes, targets.boxes, targets.labels
        kinds = 2 if self.negatives else 1
        counts = [kinds * count for count in self.positives(sizes, limit)]
        # On the host, where the sizes are known. The queries are in the order of copies, in these positives before
        # negatives, in these objects.
        number = torch.arange(max(*counts, 1)).expand(len(sizes), -1)  # (N, S)
        size = torch.tensor(sizes)[:, None].clamp(min=1)
        real = number < torch.tensor(counts)[:, None]
        copy = torch.where(real, number // (kinds * size), -1)
        is_negative = number // size % kinds == 1
        of_all = torch.where(real, torch.tensor([0, *sizes]).cumsum(0)[:-1, None] + number % size, 0)  # in [0, M)
        image, query = real.nonzero().unbind(1)
        positive = (~is_negative[real]).nonzero().squeeze(1)
        target = of_all[real][positive]
        copy, is_negative, of_all, image, query, positive, target = (
            x.to(boxes.device, non_blocking=True) for x in (copy, is_negative, of_all, image, query, positive, target)
        )
        if not len(boxes):
            boxes, labels = boxes.new_full((1, 4), 0.5), labels.new_zeros(1)
        labels = self._flipped(labels[of_all])
        return NoisedObjects(self._moved(boxes[of_all], is_negative), labels, copy, image, query, positive, target)

    def positives(self, sizes: list[int], limit: int) -> list[int]:
        """Positives of each image, which has so many objects; the rule is at ``copies``."""
        most = min(limit, self.copies * math.ceil(sum(sizes) / len(sizes)))  # copied objects of an image
        return [size * min(self.copies, max(most // max(size, 1), 1)) for size in sizes]

    def _moved(self, boxes: Tensor, is_negative: Tensor) -> Tensor:
        """boxes: (N, S, 4); is_negative: (N, S)"""
        amount = self.box_noise * (torch.rand_like(boxes) + is_negative[..., None])
        sign = 2 * torch.randint_like(boxes, 2) - 1
        shift, growth = (sign * amount).split(2, dim=-1)
        center, extent = boxes.split(2, dim=-1)
        return torch.cat([(center + shift * extent).clamp(0, 1), (extent + growth * extent).clamp(SMALLEST, 1)], dim=-1)

    def _flipped(self, labels: Tensor) -> Tensor:
        others = torch.randint_like(labels, self.num_classes)
        return torch.where(torch.rand(labels.shape, device=labels.device) < self.label_noise, others, labels)
