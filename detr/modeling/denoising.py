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
    """The denoising queries of a batch, and what they have to answer.

    boxes: (N, S, 4) cxcywh in [0, 1] of the unpadded image; labels: (N, S) int64 in [0, K)
    copies: C; copy: (S,) int64 in [0, C), the one that each query belongs to
    padding: (N, S) bool, True where an image has fewer objects than another
    image, query: (V,) int64, all that are no padding, image by image
    positive: (P,) int64 in [0, V), those of them that must find an object; target: (P,) int64 in [0, M), which one
    """

    boxes: Tensor
    labels: Tensor
    copies: int
    copy: Tensor
    padding: Tensor
    image: Tensor
    query: Tensor
    positive: Tensor
    target: Tensor


@dataclass(frozen=True)
class Denoising:
    """How objects become denoising queries.

    num_classes: K, without no-object
    copies: C; fewer, but at least one, where the copies of an image would have more than ``limit`` objects
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
        """Where no image has an object, each has one query of padding per copy, so that every parameter is used."""
        sizes, device = targets.sizes, targets.boxes.device
        most = max([*sizes, 1])
        copies = max(min(self.copies, limit // most), 1)
        kinds = 2 if self.negatives else 1
        # In the order of copies, in these positives before negatives, in these objects.
        queries = torch.arange(copies * kinds * most)
        # On the host, where the sizes are known.
        real = queries % most < torch.tensor(sizes)[:, None]  # (N, S)
        image, query = real.nonzero().unbind(1)
        positive = (query // most % kinds == 0).nonzero().squeeze(1)
        first = torch.tensor([0, *sizes]).cumsum(0)  # of each image's targets
        target = first[image[positive]] + query[positive] % most
        copy, padding, image, query, positive, target = (
            x.to(device, non_blocking=True) for x in (queries // (kinds * most), ~real, image, query, positive, target)
        )
        boxes, labels = (_padded(x, sizes, most) for x in (targets.boxes, targets.labels))  # (N, M', 4), (N, M')
        boxes = self._with_noise(boxes[:, None, None].expand(-1, copies, kinds, -1, -1))
        labels = labels.repeat(1, copies * kinds)
        others = torch.randint_like(labels, self.num_classes)
        labels = torch.where(torch.rand_like(boxes[..., 0]) < self.label_noise, others, labels)
        return NoisedObjects(boxes, labels, copies, copy, padding, image, query, positive, target)

    def _with_noise(self, boxes: Tensor) -> Tensor:
        """boxes: (N, C, 1 or 2, M', 4), positives before negatives. Returns (N, S, 4)."""
        amount = torch.rand_like(boxes)
        amount[:, :, 1:] += 1
        sign = 2 * torch.randint_like(boxes, 2) - 1
        shift, growth = (self.box_noise * sign * amount).split(2, dim=-1)
        center, extent = boxes.split(2, dim=-1)
        center = (center + shift * extent).clamp(0, 1)
        extent = (extent + growth * extent).clamp(SMALLEST, 1)
        return torch.cat([center, extent], dim=-1).flatten(1, 3)


def _padded(x: Tensor, sizes: list[int], most: int) -> Tensor:
    """(M, ...) -> (N, M', ...), zeros where an image has fewer objects."""
    rows = pad_sequence(list(x.split(sizes)), batch_first=True)
    return rows if rows.shape[1] == most else rows.new_zeros(len(sizes), most, *x.shape[1:])
