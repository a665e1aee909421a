"""Bipartite matching of queries to ground-truth objects (paper, sec. 3.1, eq. 1).

L  decoder layers
N  images
Q  queries
M  ground-truth objects of all N images together, M_i of image i
K  classes without no-object
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou


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


class HungarianMatcher(nn.Module):
    """The one-to-one assignment of least cost, for each image and decoder layer."""

    def __init__(self, cost_class: float = 1.0, cost_bbox: float = 5.0, cost_giou: float = 2.0) -> None:
        """Weights of the probability, L1 and generalised IoU terms of the matching cost."""
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
        layers, images, _, _ = logits.shape
        cost = self.cost(logits.float(), boxes.float(), targets).cpu().numpy()  # (L, Q, M), the one transfer
        if not np.isfinite(cost).all():
            raise FloatingPointError(_describe_bad_cost(cost, targets.sizes))
        ends = np.cumsum([0, *targets.sizes])
        pairs: list[np.ndarray] = [np.zeros((4, 0), dtype=np.int64)]
        for layer in range(layers):
            for image in range(images):
                start, end = ends[image], ends[image + 1]
                if start == end:
                    continue
                query, target = linear_sum_assignment(cost[layer, :, start:end])
                where = np.full_like(query, layer), np.full_like(query, image)
                pairs.append(np.stack([*where, query, target + start]))
        indices = torch.from_numpy(np.concatenate(pairs, axis=1)).to(logits.device, non_blocking=True)
        return Matches(*indices)

    def cost(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Tensor:
        """The matching cost (L, Q, M) of each query with the objects of its own image."""
        layers, _, queries, _ = logits.shape
        probability = logits.softmax(-1)
        blocks = [logits.new_zeros(layers, queries, 0)]
        pieces = zip(targets.labels.split(targets.sizes), targets.boxes.split(targets.sizes), strict=True)
        for image, (labels, truth) in enumerate(pieces):
            if not len(labels):
                continue
            predicted = boxes[:, image].flatten(0, 1)  # (L * Q, 4)
            class_cost = -probability[:, image][..., labels].flatten(0, 1)  # (L * Q, M_i)
            l1 = torch.cdist(predicted, truth, p=1)
            giou = generalized_box_iou(box_convert(predicted, "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy"))
            block = self.cost_bbox * l1 + self.cost_class * class_cost - self.cost_giou * giou
            blocks.append(block.unflatten(0, (layers, queries)))
        return torch.cat(blocks, dim=-1)


def _describe_bad_cost(cost: np.ndarray, sizes: list[int]) -> str:
    layer, _, target = np.argwhere(~np.isfinite(cost))[0]
    image = int(np.searchsorted(np.cumsum(sizes), target, side="right"))
    return (
        f"the matching cost of image {image} of the batch is not finite at decoder layer {layer}: the model's outputs "
        "have become NaN or infinite"
    )
