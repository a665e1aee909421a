"""The set prediction loss (paper, sec. 3.1, eq. 2, and appendix A.2).

    L  decoder layers, N images, Q queries, K classes without no-object
    M  ground-truth objects of the batch, P matched pairs of all layers

The dict of losses holds weighted losses only, because Detectron2 sums whatever it finds there.
"""

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import box_convert, sigmoid_focal_loss

from detr.modeling.accumulation import WholeBatch
from detr.modeling.denoising import NoisedObjects
from detr.modeling.matcher import HungarianMatcher, Matches, Targets, generalized_iou
from detr.modeling.training_queries import QuerySet

EPS = 1e-12  # where no query has a weight, their weighted mean is 0
# They bound the memory of the mask losses.
MASKS_AT_ONCE = 10  # at least
PIXELS_AT_ONCE = 2**21


class SetCriterion(nn.Module):
    """Classification, L1 and generalized IoU losses of matched pairs, for every decoder layer."""

    class_weight: Tensor
    whole_batch: WholeBatch | None = None  # the one that this batch is a part of (see ``accumulation``)

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        num_classes: int,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        no_object_weight: float = 0.1,
        class_loss_mean: str = "rank",
    ) -> None:
        """
        num_classes: K; the no-object class is row K
        class_loss_mean: "rank": the weighted mean of a rank's queries, as in the original; "all": of those of all
            ranks, so that two ranks train as one process with the images of both
        """
        super().__init__()
        self.matcher = matcher
        self.num_classes = num_classes
        self.class_loss_mean = class_loss_mean
        self.weights = {"loss_ce": 1.0, "loss_bbox": l1_weight, "loss_giou": giou_weight}
        class_weight = torch.ones(num_classes + 1)
        class_weight[-1] = no_object_weight
        self.register_buffer("class_weight", class_weight, persistent=False)

    def forward(
        self, logits: Tensor, boxes: Tensor, targets: Targets, groups: int = 1
    ) -> tuple[dict[str, Tensor], Matches]:
        """Weighted losses of all layers, and the matches that they are computed from.

        logits: (L, N, Q, K + 1); boxes: (L, N, Q, 4) cxcywh in [0, 1] of the unpadded image
        groups: the queries are so many groups, side by side. Each is matched for itself, the losses are their means,
            and the matches are those of the first

        Returns scalars ``loss_ce``, ``loss_bbox`` and ``loss_giou`` of the last layer, and the same
        with the suffix ``_0`` .. ``_{L-2}`` of the earlier ones (auxiliary losses).
        Raises FloatingPointError where the outputs are not finite (see the matcher).
        """
        # Half precision breaks the matching cost and the box losses.
        with torch.autocast(logits.device.type, enabled=False):
            logits, boxes = _groups_as_layers(logits.float(), groups), _groups_as_layers(boxes.float(), groups)
            matches = self.matcher(logits, boxes, targets)
            per_layer = {"loss_ce": self.classification_loss(logits, targets, matches)}
            per_layer |= self.box_losses(boxes, targets, matches)
            per_layer = {name: values.view(groups, -1).mean(0) for name, values in per_layer.items()}
        return self._weighted(per_layer), matches.of_first_group(groups)

    def training_losses(
        self, logits: Tensor, boxes: Tensor, targets: Targets, queries: QuerySet
    ) -> tuple[dict[str, Tensor], Matches]:
        """What ``forward`` returns, with the losses of denoising queries besides.

        logits: (L, N, R, K + 1); boxes: (L, N, R, 4), of all queries of a training step
        """
        objects, others = slice(queries.num_objects), slice(queries.num_objects, None)
        losses, matches = self(logits[:, :, objects], boxes[:, :, objects], targets, queries.groups)
        if queries.noised is not None:
            losses |= self.denoising_losses(logits[:, :, others], boxes[:, :, others], targets, queries.noised)
        return losses, matches

    def denoising_losses(
        self, logits: Tensor, boxes: Tensor, targets: Targets, noised: NoisedObjects
    ) -> dict[str, Tensor]:
        """The losses of denoising queries, as ``loss_ce_dn`` and so on.

        Those of boxes are divided by the mean number of copies: one with fewer copies than others weighs less.

        logits: (L, N, S, K + 1); boxes: (L, N, S, 4)
        """
        layers, pairs = len(logits), len(noised.target)
        with torch.autocast(logits.device.type, enabled=False):
            # All of them side by side as if of one image, since images differ in their number.
            logits, boxes = (x.float()[:, noised.image, noised.query][:, None] for x in (logits, boxes))  # (L, 1, V, .)
            layer = torch.arange(layers, device=logits.device).repeat_interleave(pairs)
            matches = Matches(
                layer, torch.zeros_like(layer), noised.positive.repeat(layers), noised.target.repeat(layers)
            )
            per_layer = self.box_losses(boxes, targets, matches)
            whole = self.whole_batch
            copies = max(pairs, 1) / max(len(targets.labels), 1) if whole is None else whole.copies  # in the mean
            per_layer = {name: values / copies for name, values in per_layer.items()}
            try:
                self.whole_batch = None if whole is None else whole.of_noised()
                per_layer["loss_ce"] = self.classification_loss(logits, targets, matches)
            finally:
                self.whole_batch = whole
        return self._weighted(per_layer, suffix="_dn")

    def _weighted(self, per_layer: dict[str, Tensor], suffix: str = "") -> dict[str, Tensor]:
        """per_layer: (L,) each, by name. Returns scalars; names of earlier layers end in their number."""
        losses: dict[str, Tensor] = {}
        for name, values in per_layer.items():
            *earlier, last = (self.weights[name] * values).unbind()
            losses |= {f"{name}{suffix}_{layer}": value for layer, value in enumerate(earlier)}
            losses[name + suffix] = last
        return losses

    def classification_loss(self, logits: Tensor, targets: Targets, matches: Matches) -> Tensor:
        """Cross-entropy over all queries, a weighted mean by ``class_loss_mean``: (L,)."""
        classes = logits.new_full(logits.shape[:3], self.num_classes, dtype=torch.int64)
        classes[matches.layer, matches.image, matches.query] = targets.labels[matches.target]
        weight = self.class_weight[classes]  # (L, N, Q)
        loss = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), reduction="none").view_as(weight)
        total = weight.sum((1, 2))
        if self.whole_batch is not None:
            objects, no_objects = self.whole_batch.queries
            total = (objects + no_objects * self.class_weight[-1]).expand(len(logits))
        if self.class_loss_mean == "all":
            total = self._mean_of_ranks(total)
        return (weight * loss).sum((1, 2)) / total.clamp(min=EPS)

    def box_losses(self, boxes: Tensor, targets: Targets, matches: Matches) -> dict[str, Tensor]:
        """L1 and (1 - GIoU) over matched pairs, sums divided by the number of boxes: (L,) each."""
        predicted = boxes[matches.layer, matches.image, matches.query]  # (P, 4)
        truth = targets.boxes[matches.target]
        l1 = F.l1_loss(predicted, truth, reduction="none").sum(-1)  # (P,)
        pairs = generalized_iou(box_convert(predicted, "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy"))
        num_boxes = self._num_boxes(targets)
        layers = len(boxes)  # every layer matches the same number of pairs
        return {
            "loss_bbox": l1.view(layers, -1).sum(1) / num_boxes,
            "loss_giou": (1 - pairs).view(layers, -1).sum(1) / num_boxes,
        }

    def mask_losses(self, mask_logits: Tensor, targets: Targets, matches: Matches) -> dict[str, Tensor]:
        """``loss_mask`` (sigmoid focal) and ``loss_dice`` of matched pairs, which weigh 1 (paper, sec. 4.3): scalars.

        mask_logits: (P, h, w), one for each of the pairs; targets: with masks (M, H, W), which the predictions
        are upsampled to
        """
        if targets.masks is None:
            raise ValueError("mask losses need targets with masks")
        height, width = targets.masks.shape[-2:]
        if len(mask_logits) * height * width <= PIXELS_AT_ONCE:
            terms = [_mask_terms(mask_logits, targets.masks[matches.target])]
        else:
            # A dozen maps of the input's size for every object would be kept for the gradient: computed again instead.
            at_once = max(MASKS_AT_ONCE, PIXELS_AT_ONCE // (height * width))
            terms = [
                checkpoint(_mask_terms, logits, targets.masks[target], use_reentrant=False, preserve_rng_state=False)
                for logits, target in zip(mask_logits.split(at_once), matches.target.split(at_once), strict=True)
            ]
        focal, dice = (torch.cat(x).sum() for x in zip(*terms, strict=True))
        num_boxes = self._num_boxes(targets)
        return {"loss_mask": focal / num_boxes, "loss_dice": dice / num_boxes}

    def _num_boxes(self, targets: Targets) -> Tensor | float:
        """Objects per rank, averaged over all ranks and at least 1, without waiting for the device.

        In evaluation, where ranks may have different numbers of batches, those of this rank. Of a part of a batch, the
        mean over its parts.
        """
        whole = self.whole_batch
        count, parts = (sum(targets.sizes), 1) if whole is None else (whole.objects, whole.parts)
        if comm.get_world_size() == 1 or not self.training:
            return max(count, 1.0) / parts
        mean = self._mean_of_ranks(torch.full((), float(count), device=targets.boxes.device))  # to copy it would wait
        return mean.clamp(min=1) / parts

    def _mean_of_ranks(self, x: Tensor) -> Tensor:
        world_size = comm.get_world_size()
        if world_size == 1 or not self.training:
            return x
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total / world_size

    @torch.no_grad()
    def metrics(self, logits: Tensor, targets: Targets, matches: Matches) -> dict[str, Tensor]:
        """What to watch in training besides the losses: scalars, on the device.

        class_error: percentage of the last layer's matched queries with a wrong best class; 100 where
            nothing is matched, as in the original
        cardinality_error: mean absolute difference of predicted and true number of objects

        logits: (L, N, Q, K + 1)
        """
        best = logits[-1].argmax(-1)  # (N, Q)
        last = matches.layer == len(logits) - 1
        right = best[matches.image, matches.query] == targets.labels[matches.target]
        pairs = last.sum()
        class_error = 100 - 100 * (right & last).sum() / pairs.clamp(min=1)
        predicted = (best != self.num_classes).sum(1).float()  # (N,)
        truth = torch.tensor(targets.sizes, dtype=predicted.dtype).to(predicted.device, non_blocking=True)
        return {"class_error": class_error, "cardinality_error": F.l1_loss(predicted, truth)}


def _groups_as_layers(x: Tensor, groups: int) -> Tensor:
    """(L, N, G Q, ...) -> (G L, N, Q, ...)."""
    return x if groups == 1 else x.unflatten(2, (groups, -1)).movedim(2, 0).flatten(0, 1)


def _mask_terms(mask_logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice terms of R objects: (R,) each. mask_logits: (R, h, w); masks: (R, H, W) bool."""
    with torch.autocast(mask_logits.device.type, enabled=False):
        logits = F.interpolate(
            mask_logits[:, None].float(), size=masks.shape[-2:], mode="bilinear", align_corners=False
        )
        predicted, truth = logits.flatten(1), masks.flatten(1).float()  # (R, H W)
        focal = sigmoid_focal_loss(predicted, truth, alpha=0.25, gamma=2.0).mean(1)
        probability = predicted.sigmoid()
        overlap = (probability * truth).sum(1)
        dice = 1 - (2 * overlap + 1) / (probability.sum(1) + truth.sum(1) + 1)
        return focal, dice
