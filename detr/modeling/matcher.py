"""Bipartite matching of queries to ground-truth objects (paper, sec. 3.1, eq. 1).

L  decoder layers
N  images
Q  queries
M  ground-truth objects of all N images together, M_i of image i
K  classes without no-object
"""

from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert


@dataclass
class Targets:
    """Ground truth of a batch, concatenated over its images.

    labels: (M,) int64 in [0, K)
    boxes: (M, 4) float32, cxcywh in [0, 1] of the unpadded image
    sizes: M_i for each of the N images, on the host, so that nothing waits for the device
    masks: (M, H, W) bool over the padded batch, or None where masks are not trained
    """

    labels: Tensor
    boxes: Tensor
    sizes: list[int]
    masks: Tensor | None = None


@dataclass
class Matches:
    """The pairs of all layers and images; each field (P,) int64, sorted by layer, then image, then query.

    layer: in [0, L); image: in [0, N); query: in [0, Q); target: in [0, M), into ``Targets``
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def of_last_layer(self, layers: int) -> "Matches":
        """The pairs of the last of the layers; every layer matches the same number."""
        pairs = len(self.layer) // layers
        start = len(self.layer) - pairs
        return Matches(self.layer[start:], self.image[start:], self.query[start:], self.target[start:])

    def of_first_group(self, groups: int) -> "Matches":
        """The pairs of the first layers, where the layers are so many groups."""
        pairs = len(self.layer) // groups
        return Matches(self.layer[:pairs], self.image[:pairs], self.query[:pairs], self.target[:pairs])


class HungarianMatcher(nn.Module):
    """The one-to-one assignment of least cost, for each image and decoder layer."""

    def __init__(self, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0) -> None:
        """Weights of the probability, L1 and generalized IoU terms of the matching cost."""
        super().__init__()
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou

    @torch.no_grad()
    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        """Matches every layer at once, with a single transfer to the host.

        logits: (L, N, Q, K + 1); boxes: (L, N, Q, 4) cxcywh in [0, 1] of the unpadded image

        Where an image has more objects than queries, the objects of highest cost stay unmatched.
        Raises FloatingPointError where a cost is not finite, naming layer and image of the batch.
        """
        cost = self.cost(logits.float(), boxes.float(), targets).cpu().numpy()  # (L, N, Q, M'), the one transfer
        starts = np.cumsum([0, *targets.sizes])
        pairs: list[np.ndarray] = [np.zeros((4, 0), dtype=np.int64)]
        for layer in range(len(logits)):
            for image, size in enumerate(targets.sizes):
                if not size:
                    continue
                of_image = cost[layer, image, :, :size]
                if not np.isfinite(of_image).all():
                    raise FloatingPointError(
                        f"the matching cost of image {image} of the batch is not finite at decoder layer {layer}: the "
                        "model's outputs have become NaN or infinite"
                    )
                # scipy imports the package at its first use, which takes half a second.
                query, target = scipy.optimize.linear_sum_assignment(of_image)
                where = np.full_like(query, layer), np.full_like(query, image)
                pairs.append(np.stack([*where, query, target + starts[image]]))
        indices = torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device, non_blocking=True)
        return Matches(*indices)

    def cost(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """The matching cost (L, N, Q, M') of each query with the objects of its own image.

        M' is the largest number of objects of an image; entries beyond an image's own number are meaningless.
        """
        labels = pad_sequence(targets.labels.split(targets.sizes), batch_first=True)  # (N, M')
        truth = pad_sequence(targets.boxes.split(targets.sizes), batch_first=True)  # (N, M', 4)
        layers, _, queries, _ = logits.shape
        of_labels = labels[None, :, None].expand(layers, -1, queries, -1)
        probability = logits.softmax(-1).gather(-1, of_labels)  # (L, N, Q, M')
        l1 = torch.cdist(boxes, truth, p=1)
        overlap = generalized_iou(
            box_convert(boxes, "cxcywh", "xyxy")[..., None, :], box_convert(truth, "cxcywh", "xyxy")[:, None]
        )
        return self.cost_bbox * l1 - self.cost_class * probability - self.cost_giou * overlap


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al., arXiv 1902.09630): (...) in (-1, 1].

    a, b: (..., 4) xyxy, of shapes that broadcast; of each pair one must have an area. torchvision's pairs all boxes
    with all, or indexes by a mask, for which a GPU makes the host wait.
    """
    intersection = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - intersection
    return intersection / union - (hull - union) / hull


def _area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """0 where the corners are swapped, as those of an empty intersection are."""
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    return width * height
