"""The wiring room: ``Detr`` joins backbone, transformer, heads, set loss and postprocessing.

N  images, H x W their padded size in pixels
L  decoder layers, Q queries, K classes without no-object, d width of the transformer
"""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import BitMasks, ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn
from torchvision.ops import box_convert

from detr.errors import InputError
from detr.modeling.backbone import padding_mask
from detr.modeling.building import parts_from_config
from detr.modeling.criterion import SetCriterion
from detr.modeling.mask_head import MaskFeatures, MaskHead
from detr.modeling.matcher import Targets
from detr.modeling.postprocessing import Postprocessor
from detr.modeling.preprocessing import normalised_batch, per_channel
from detr.modeling.transformer import Transformer


class Outputs(NamedTuple):
    """What the network says of N images.

    logits: (L, N, Q, K + 1), the last column no-object; L = 1 where the last decoder layer alone was asked for
    boxes: (L, N, Q, 4) cxcywh in [0, 1] of the unpadded image
    mask_features: what the mask head reads; None in a model without
    """

    logits: Tensor
    boxes: Tensor
    mask_features: MaskFeatures | None


class BoxHead(nn.Module):
    """A perceptron of three layers from a query's embedding to its box (paper, sec. 3.2)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 4)])

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d). Returns boxes (..., 4), cxcywh in [0, 1] of the unpadded image."""
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x).sigmoid()


@META_ARCH_REGISTRY.register()
class Detr(nn.Module):
    """DETR (Carion et al., arXiv 2005.12872) as a Detectron2 meta-architecture."""

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        in_feature: str,
        position_encoding: nn.Module,
        transformer: Transformer,
        criterion: SetCriterion,
        postprocessor: Postprocessor,
        num_classes: int,
        num_queries: int,
        deep_supervision: bool = True,
        mask_head: MaskHead | None = None,
        pyramid: tuple[str, ...] = (),
        freeze_detr: bool = False,
        inference_dtype: torch.dtype = torch.float32,
        pixel_mean: tuple[float, ...] = (123.675, 116.280, 103.530),
        pixel_std: tuple[float, ...] = (58.395, 57.120, 57.375),
    ) -> None:
        """Joins the parts.

        in_feature: the name of the backbone's feature that the transformer reads
        position_encoding: (N, H, W) bool mask -> (N, d, H, W)
        num_classes: K, without no-object
        deep_supervision: whether the earlier decoder layers are penalised too (auxiliary losses)
        mask_head: makes the queries' masks; None for boxes alone
        pyramid: the names of the backbone's features that the mask head reads, from coarse to fine
        freeze_detr: whether the mask head alone is trained, on a DETR that stays as it is
        inference_dtype: what products and convolutions are computed in outside training; anything else than
            float32 is mixed precision (autocast)
        pixel_mean, pixel_std: of the image's channels, in the range 0..255
        """
        super().__init__()
        d = transformer.d
        self.backbone = backbone
        self.in_feature = in_feature
        self.position_encoding = position_encoding
        self.input_proj = nn.Conv2d(backbone.output_shape()[in_feature].channels, d, kernel_size=1)
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, d)
        self.class_embed = nn.Linear(d, num_classes + 1)
        self.bbox_embed = BoxHead(d)
        self.mask_head = mask_head
        self.pyramid = pyramid
        self.criterion = criterion
        self.postprocessor = postprocessor
        self.num_classes = num_classes
        self.deep_supervision = deep_supervision
        self.freeze_detr = freeze_detr
        self.inference_dtype = inference_dtype
        if freeze_detr:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("mask_head."))
        self.register_buffer("pixel_mean", per_channel(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", per_channel(pixel_std), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The parts that cfg asks for (see ``parts_from_config``)."""
        return parts_from_config(cfg)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detectron2's standard contract.

        Each input is a dict with

        * ``image``: (3, H_i, W_i) uint8 or float in the range 0..255, channels as in ``INPUT.FORMAT``
        * ``instances`` (training): ``gt_boxes`` xyxy in pixels of ``image``, ``gt_classes`` in [0, K), with a
          mask head ``gt_masks``, BitMasks of the size of ``image``
        * ``height``, ``width`` (inference): the output's size in pixels; by default that of ``image``

        Returns the dict of weighted losses in training, else a list of dicts, one an image, as
        ``Postprocessor`` makes them: ``instances``, and ``panoptic_seg`` where it is enabled.
        Raises InputError for labels outside [0, K), FloatingPointError where the outputs are not finite
        in training.
        """
        images = self.preprocess(batched_inputs)
        # A frozen DETR learns nothing from auxiliary losses.
        all_layers = self.training and self.deep_supervision and not self.freeze_detr
        outputs = self.predict(images, all_layers=all_layers)
        if self.training:
            return self.losses(outputs, self.targets(batched_inputs, tuple(images.tensor.shape[-2:])))
        return self.postprocess(outputs, batched_inputs, images)

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """The normalised and padded batch (see ``normalised_batch``)."""
        backbone = self.backbone
        return normalised_batch(
            batched_inputs, self.pixel_mean, self.pixel_std, backbone.size_divisibility, backbone.padding_constraints
        )

    def predict(self, images: ImageList, all_layers: bool) -> Outputs:
        """The network itself, but for the masks: who wants them says of which queries (see ``MaskHead``)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_detr), self._precision():
            return self._predict(images, all_layers)

    def _precision(self) -> AbstractContextManager[Any]:
        if self.training or self.inference_dtype == torch.float32:
            return nullcontext()  # a training may have its own
        return torch.autocast(self.device.type, self.inference_dtype)

    def _predict(self, images: ImageList, all_layers: bool) -> Outputs:
        features = self.backbone(images.tensor)
        return self.read(features, padding_mask(images, features[self.in_feature].shape[-2:]), all_layers)

    def read(self, features: dict[str, Tensor], padding: Tensor | None, all_layers: bool) -> Outputs:
        """What follows the backbone.

        features: name -> (N, C, H, W), as the backbone gives them
        padding: (N, h, w) bool of the transformer's feature, True = padding; None where no image is padded
        """
        projected = self.input_proj(features[self.in_feature])  # (N, d, h, w)
        n, _, h, w = projected.shape
        mask = padding if padding is not None else torch.zeros(n, h, w, dtype=torch.bool, device=projected.device)
        position = self.position_encoding(mask).to(projected.dtype)
        decoded, memory = self.transformer(projected, position, self.query_embed.weight, padding, all_layers)
        mask_features = None
        if self.mask_head is not None:
            pyramid = tuple(features[name] for name in self.pyramid)
            mask_features = MaskFeatures(projected, memory, padding, pyramid, queries=decoded[-1])
        # The heads cost nothing, and half precision would show in scores and boxes.
        with torch.autocast(decoded.device.type, enabled=False):
            decoded = decoded.to(self.class_embed.weight.dtype)
            return Outputs(self.class_embed(decoded), self.bbox_embed(decoded), mask_features)

    def train(self, mode: bool = True) -> "Detr":
        """A frozen DETR keeps its dropout, as in the original, but not one of its statistics moves."""
        super().train(mode)
        if self.freeze_detr:
            self.backbone.eval()
        return self

    def targets(self, batched_inputs: list[dict[str, Any]], padded_size: tuple[int, int]) -> Targets:
        """Ground truth on the model's device, boxes as cxcywh in [0, 1], masks padded to the batch's size."""
        instances: list[Instances] = [x["instances"] for x in batched_inputs]
        labels, boxes = [], []
        for x, truth in zip(batched_inputs, instances, strict=True):
            self._check_labels(truth.gt_classes, x)
            height, width = truth.image_size
            scale = truth.gt_boxes.tensor.new_tensor([width, height, width, height])
            labels.append(truth.gt_classes)
            boxes.append(box_convert(truth.gt_boxes.tensor, "xyxy", "cxcywh") / scale)
        return Targets(
            labels=torch.cat(labels).to(self.device, non_blocking=True),
            boxes=torch.cat(boxes).to(self.device, non_blocking=True),
            sizes=[len(x) for x in instances],
            masks=self._target_masks(instances, padded_size) if self.mask_head is not None else None,
        )

    def _target_masks(self, instances: list[Instances], padded_size: tuple[int, int]) -> Tensor:
        """(M, H, W) bool, False in the padding."""
        total = sum(len(x) for x in instances)
        masks = torch.zeros(total, *padded_size, dtype=torch.bool, device=self.device)
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
            masks[start:end, :height, :width] = truth.gt_masks.tensor.to(self.device, non_blocking=True)
            start = end
        return masks

    def _check_labels(self, labels: Tensor, x: dict[str, Any]) -> None:
        # K itself would train as no-object without a word; a larger one kills a CUDA kernel later on.
        if labels.device.type == "cpu" and len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise InputError(
                f"{x.get('file_name', 'an image')} has the labels {sorted(set(labels.tolist()))}, outside "
                f"[0, {self.num_classes}): set MODEL.DETR.NUM_CLASSES to the data set's number of classes"
            )

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses, of masks for matched queries alone; the metrics go to the event storage, never here."""
        logits = outputs.logits
        losses, matches = self.criterion(logits, outputs.boxes, targets)
        if self.mask_head is not None and outputs.mask_features is not None:
            last = matches.of_last_layer(len(logits))
            mask_logits = self.mask_head(outputs.mask_features, last.image, last.query)  # (P, h, w)
            losses |= self.criterion.mask_losses(mask_logits, targets, last)
        if has_event_storage():  # of this rank's batch; Detectron2 smooths them over the last 20
            metrics = self.criterion.metrics(logits, targets, matches)
            values = torch.stack(list(metrics.values())).tolist()  # the losses' few kernels are waited for, once
            get_event_storage().put_scalars(**dict(zip(metrics, values, strict=True)))
        return losses

    def postprocess(
        self, outputs: Outputs, batched_inputs: list[dict[str, Any]], images: ImageList
    ) -> list[dict[str, Any]]:
        """The last layer's outputs -> one dict an image, at output size."""
        masks_of = None
        if self.mask_head is not None and outputs.mask_features is not None:
            masks_of = functools.partial(self._masks_of, outputs.mask_features)
        return self.postprocessor.of_batch(outputs.logits[-1], outputs.boxes[-1], masks_of, batched_inputs, images)

    def _masks_of(self, features: MaskFeatures, index: int, queries: Tensor) -> Tensor:
        """Mask logits (R, h, w) of queries (R,) of one of the images."""
        assert self.mask_head is not None
        with self._precision():
            return self.mask_head(features.of_image(index), torch.zeros_like(queries), queries)  # type: ignore[no-any-return]
