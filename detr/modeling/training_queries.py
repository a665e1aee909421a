"""Queries for training alone: anchors, further groups and denoising. What they train is DETR as it was.

    N  images, Q object queries, G groups of them in training, d width of the transformer
    R  queries of a training step: G Q object queries, the kept group first, then S denoising queries

A query embedding does not depend on the image. So those of anchors can be computed once, when training is over
(``kept_queries``), and all else is left out.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detr.modeling.denoising import Denoising, NoisedObjects
from detr.modeling.matcher import Targets
from detr.modeling.position_encoding import sine_features
from detr.modeling.transformer import MLP


@dataclass
class QuerySet:
    """The queries of a training step.

    embed: (G Q, d), or (N, R, d) with denoising
    content: (N, R, d), the decoder's input: embedded labels for denoising queries and zeros for the others; None for
        zeros alone
    mask: (N or 1, R, R) bool, True = the query of the row does not see that of the column; None for one group alone
    groups: G; num_objects: G Q
    noised: what the denoising queries come from, or None
    """

    embed: Tensor
    content: Tensor | None
    mask: Tensor | None
    groups: int
    num_objects: int
    noised: NoisedObjects | None


class TrainingQueries(nn.Module):
    """Makes the queries of a training step, and the rows of the plain DETR that it trains."""

    def __init__(
        self, *, num_queries: int, d: int, groups: int = 1, anchors: bool = False, denoising: Denoising | None = None
    ) -> None:
        """
        groups: G, of which the first is kept (Group DETR, arXiv 2207.13085)
        anchors: whether the object queries are embedded boxes, whose four numbers are learned (as in DAB-DETR, arXiv
            2201.12329); those of the kept group have a learned offset besides, so that they can be any
        denoising: makes the denoising queries; None for none
        """
        super().__init__()
        self.num_queries = num_queries
        self.d = d
        self.groups = groups
        self.denoising = denoising
        self.anchors: nn.Parameter | None = None
        if anchors:
            self.anchors = nn.Parameter(torch.rand(groups * num_queries, 4).logit(eps=0.05))
            # Denoising teaches the perceptron to tell boxes apart. Without it, rows as of a plain DETR have to begin:
            # embedded boxes are nearly alike at first, and all queries would learn the same.
            start = torch.randn if denoising is None else torch.zeros
            self.offsets = nn.Parameter(start(num_queries, d))
        elif groups > 1:
            self.more_queries = nn.Parameter(torch.randn((groups - 1) * num_queries, d))
        if anchors or denoising is not None:
            self.box_embed = MLP(2 * d, d, d, num_layers=2)
        if denoising is not None:
            self.label_embed = nn.Embedding(denoising.num_classes, d)

    def forward(self, query_embed: Tensor, targets: Targets) -> QuerySet:
        """query_embed: (Q, d), the rows of the plain DETR; where there are anchors, these count instead."""
        embed, content, noised = self.object_queries(query_embed), None, None
        count = len(embed)
        if self.denoising is not None:
            noised = self.denoising(targets, limit=2 * self.num_queries)
            n = len(noised.boxes)
            embed = torch.cat([embed.expand(n, -1, -1), self.embed_boxes(noised.boxes)], dim=1)
            content = F.pad(self.label_embed(noised.labels), (0, 0, count, 0))  # zeros before
        return QuerySet(embed, content, self._mask(noised, embed.device), self.groups, count, noised)

    def object_queries(self, query_embed: Tensor) -> Tensor:
        """(G Q, d), the kept group first."""
        if self.anchors is not None:
            embed = self.embed_boxes(self.anchors.sigmoid())
            return torch.cat([embed[: self.num_queries] + self.offsets, embed[self.num_queries :]])
        return torch.cat([query_embed, self.more_queries]) if self.groups > 1 else query_embed

    def embed_boxes(self, boxes: Tensor) -> Tensor:
        """boxes: (..., 4) cxcywh in [0, 1]. Returns (..., d)."""
        with torch.autocast(boxes.device.type, enabled=False):
            features = sine_features(boxes * 2 * math.pi, self.d // 2)  # (..., 4, d / 2)
            features = features.flatten(-2).to(next(self.box_embed.parameters()).dtype)
            return self.box_embed(features)  # type: ignore[no-any-return]

    def _mask(self, noised: NoisedObjects | None, device: torch.device) -> Tensor | None:
        """Groups do not see each other; padding is seen by itself alone, since no row may be without any."""
        if noised is None and self.groups == 1:
            return None
        group = torch.arange(self.groups, device=device).repeat_interleave(self.num_queries)[None]  # (1, G Q)
        if noised is None:
            return group[:, :, None] != group[:, None]
        of_noised = torch.where(noised.copy < 0, -1, self.groups + noised.copy)
        group = torch.cat([group.expand(len(of_noised), -1), of_noised], dim=1)  # (N, R)
        seen = (group[:, :, None] == group[:, None]) & (group[:, None] >= 0)
        return ~(seen | torch.eye(group.shape[1], dtype=torch.bool, device=device))

    def kept_queries(self) -> Tensor:
        """(Q, d), the rows of the plain DETR, where there are anchors."""
        assert self.anchors is not None
        return self.embed_boxes(self.anchors[: self.num_queries].sigmoid()) + self.offsets

    @torch.no_grad()
    def start_from(self, rows: Tensor) -> None:
        """Sets the offsets so that the kept group's rows are these, (Q, d)."""
        self.offsets.zero_()
        self.offsets.copy_(rows - self.kept_queries())
