"""The meta-architecture: ``Detr`` joins backbone, transformer, heads, set loss and postprocessing.

N  images, H x W their padded size in pixels
L  decoder layers, Q queries, K classes without no-object, d width of the transformer
"""

import functools
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from detr.modeling.backbone import pad_to_patches, padded_sizes, padding_constraints
from detr.modeling.batches import run_in_batches
from detr.modeling.card import ModelCard
from detr.modeling.criterion import SetCriterion
from detr.modeling.mask_head import MaskFeatures, MaskHead
from detr.modeling.matcher import Targets
from detr.modeling.network import precision, run_network
from detr.modeling.outputs import Outputs, TrainingOutputs
from detr.modeling.parts import build_parts
from detr.modeling.postprocessing import Postprocessor
from detr.modeling.preprocessing import BaseDetr, make_targets, normalize_images
from detr.modeling.training_queries import QuerySet, TrainingQueries
from detr.modeling.transformer import MLP, Transformer


@META_ARCH_REGISTRY.register()
class Detr(BaseDetr):
    """DETR (Carion et al., arXiv 2005.12872) as a Detectron2 meta-architecture."""

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
        training_queries: TrainingQueries | None = None,
        mask_head: MaskHead | None = None,
        pyramid: tuple[str, ...] = (),
        freeze_detr: bool = False,
        inference_dtype: torch.dtype = torch.float32,
        images_alone: bool = False,
        pad_multiple: int = 1,
        compile_mode: str = "",
        pixel_mean: tuple[float, ...] = (123.675, 116.280, 103.530),
        pixel_std: tuple[float, ...] = (58.395, 57.120, 57.375),
        card: ModelCard | None = None,
    ) -> None:
        """Joins the parts.

        in_feature: the name of the backbone's feature that the transformer reads
        position_encoding: (N, H, W) bool mask -> (N, d, H, W)
        num_classes: K, without no-object
        deep_supervision: whether the earlier decoder layers are penalized too (auxiliary losses)
        training_queries: makes the queries of a training step; None for the object queries alone
        mask_head: makes the queries' masks; None for boxes only
        pyramid: the names of the backbone's features that the mask head reads, from coarse to fine
        freeze_detr: whether only the mask head is trained, with the box model frozen
        inference_dtype: what products and convolutions are computed in outside training; anything else than
            float32 is mixed precision (autocast)
        images_alone, pixel_mean, pixel_std: see ``BaseDetr``
        pad_multiple: of pixels, to which both sides of a batch are padded besides what the backbone asks for
        compile_mode: of torch.compile, which compiles the network; "" for none
        card: what checkpoints say of the model besides its tensors; by default made from cfg (see ``HasCard``)
        """
        super().__init__(pixel_mean, pixel_std, images_alone)
        d = transformer.d
        self.backbone = pad_to_patches(backbone)
        self.in_feature = in_feature
        self.position_encoding = position_encoding
        self.input_proj = nn.Conv2d(backbone.output_shape()[in_feature].channels, d, kernel_size=1)
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, d)
        self.class_embed = nn.Linear(d, num_classes + 1)
        self.bbox_embed = MLP(d, d, 4, num_layers=3)
        self.training_queries = training_queries
        self.register_load_state_dict_post_hook(_start_from_loaded_rows)
        if training_queries is not None and training_queries.anchors is not None:
            self.query_embed.requires_grad_(False)
            self._update_query_embed()
        self.mask_head = mask_head
        self.pyramid = pyramid
        self.criterion = criterion
        self.postprocessor = postprocessor
        self.num_classes = num_classes
        self.deep_supervision = deep_supervision
        self.freeze_detr = freeze_detr
        self.inference_dtype = inference_dtype
        self.pad_multiple, self.compile_mode = pad_multiple, compile_mode
        if card is not None:
            self.card = card
        if freeze_detr:
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name.startswith("mask_head."))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The only place where cfg becomes arguments. Raises InputError for impossible sizes and combinations."""
        return build_parts(cfg)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Detectron2's standard contract.

        Each input is a dict with

        * ``image``: (C, H_i, W_i) uint8 or float in the range 0..255, channels as in ``INPUT.FORMAT``
        * ``instances`` (training): ``gt_boxes`` xyxy in pixels of ``image``, ``gt_classes`` in [0, K), with a
          mask head ``gt_masks``, BitMasks of the size of ``image``
        * ``height``, ``width`` (inference): the output's size in pixels; by default that of ``image``

        Returns the dict of weighted losses in training, else what ``inference`` returns.
        Raises InputError for labels outside [0, K), FloatingPointError where the outputs are not finite
        in training.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess(batched_inputs)
        targets = self.targets(batched_inputs, tuple(images.tensor.shape[-2:]))
        # With the box model frozen, auxiliary losses teach nothing.
        return_intermediate = self.deep_supervision and not self.freeze_detr
        more = [] if self.training_queries is None else [self.training_queries(self.query_embed.weight, targets)]
        return self.losses(self.forward_network(images, return_intermediate, *more), targets)

    @torch.no_grad()
    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One dict per image, as ``Postprocessor`` makes them: ``instances``, and ``panoptic_seg`` if enabled.

        No graph is kept; for gradients in evaluation mode call ``forward_network``.
        """
        if self.must_part(batched_inputs):
            return list(run_in_batches(batched_inputs, functools.partial(Detr.inference, self), len(batched_inputs)))
        images = self.preprocess(batched_inputs)
        outputs = self.forward_network(images, return_intermediate=False)
        return self.postprocess(outputs, batched_inputs, images)

    @torch.no_grad()
    def evaluation_losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The weighted losses of the object queries, in evaluation mode; of this rank's batch alone.

        batched_inputs: as ``forward`` takes them in training
        """
        images = self.preprocess(batched_inputs)
        targets = self.targets(batched_inputs, tuple(images.tensor.shape[-2:]))
        return self.losses(self.forward_network(images, self.deep_supervision and not self.freeze_detr), targets)

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The backbone's, as Detectron2 has them, with ``pad_multiple``."""
        return padding_constraints(self.backbone, self.pad_multiple)

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """The normalized and padded batch (see ``normalize_images``)."""
        divisibility = self.backbone.size_divisibility
        return normalize_images(batched_inputs, self.pixel_mean, self.pixel_std, divisibility, self.padding_constraints)

    def forward_network(self, images: ImageList, return_intermediate: bool, queries: QuerySet | None = None) -> Outputs:
        """Backbone, transformer and heads. ``MaskHead`` predicts masks later, for chosen queries only.

        return_intermediate: whether the earlier decoder layers are wanted too, for the auxiliary losses
        queries: those of a training step; None for the object queries alone
        """
        return run_network(self, images.tensor, padded_sizes(images), return_intermediate, queries)

    def forward_heads(
        self,
        features: dict[str, Tensor],
        key_padding_mask: Tensor | None,
        return_intermediate: bool,
        queries: QuerySet | None = None,
    ) -> Outputs:
        """Transformer and heads.

        features: name -> (N, C, H, W), as the backbone returns them
        key_padding_mask: (N, h, w) bool of the transformer's feature, True = padding; None where no image is padded
        """
        projected = self.input_proj(features[self.in_feature])  # (N, d, h, w)
        n, _, h, w = projected.shape
        mask = key_padding_mask
        if mask is None:
            mask = torch.zeros(n, h, w, dtype=torch.bool, device=projected.device)
        position = self.position_encoding(mask).to(projected.dtype)
        embed = self.object_queries() if queries is None else queries.embed
        more = () if queries is None else (queries.content, queries.mask)
        decoded, memory = self.transformer(projected, position, embed, key_padding_mask, return_intermediate, *more)
        mask_features = None
        if self.mask_head is not None:
            pyramid = tuple(features[name] for name in self.pyramid)
            kept = decoded[-1, :, : self.query_embed.num_embeddings]
            mask_features = MaskFeatures(projected, memory, key_padding_mask, pyramid, queries=kept)
        # The heads cost nothing, and half precision would show in scores and boxes.
        with torch.autocast(decoded.device.type, enabled=False):
            decoded = decoded.to(self.class_embed.weight.dtype)
            logits, boxes = self.class_embed(decoded), self.bbox_embed(decoded).sigmoid()
        if queries is None:
            return Outputs(logits, boxes, mask_features)
        return TrainingOutputs.of_all(logits, boxes, mask_features, queries)

    def object_queries(self) -> Tensor:
        """The object queries' embeddings (Q, d): those of the anchors where there are any, else learned rows."""
        queries = self.training_queries
        return self.query_embed.weight if queries is None or queries.anchors is None else queries.kept_queries()

    def fold_queries(self) -> None:
        """Leaves a plain DETR, in place: what is for training alone is removed, and the outputs stay the same."""
        queries = self.training_queries
        if queries is not None and queries.anchors is not None:
            self._update_query_embed()
            self.query_embed.requires_grad_(queries.anchors.requires_grad)
        self.training_queries = None

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module; ``query_embed`` is that of a plain DETR, and ``training_queries`` is for training alone."""
        self._update_query_embed()
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._update_query_embed()  # where the loaded state has none, it must fit the anchors
        super()._load_from_state_dict(*args, **kwargs)

    @torch.no_grad()
    def _update_query_embed(self) -> None:
        queries = self.training_queries
        if queries is not None and queries.anchors is not None:
            self.query_embed.weight.copy_(queries.kept_queries())

    def train(self, mode: bool = True) -> "Detr":
        """With the box model frozen its dropout stays on, as in the original, but no statistic of a norm moves."""
        super().train(mode)
        if not mode:
            self._update_query_embed()
        if self.freeze_detr:
            self.backbone.eval()
        return self

    def targets(self, batched_inputs: list[dict[str, Any]], padded_size: tuple[int, int]) -> Targets:
        """Ground truth on the model's device (see ``make_targets``)."""
        size = None if self.mask_head is None else padded_size
        return make_targets(batched_inputs, num_classes=self.num_classes, padded_size=size, device=self.device)

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Weighted losses, masks for matched queries only. Metrics go to the event storage, never into the dict."""
        logits = outputs.logits
        if isinstance(outputs, TrainingOutputs):
            losses, matches = self.criterion.training_losses(
                outputs.all_logits, outputs.all_boxes, targets, outputs.queries
            )
        else:
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
        """The last layer's outputs -> one dict per image, at output size."""
        predict_masks = None
        if self.mask_head is not None and outputs.mask_features is not None:
            predict_masks = functools.partial(self._predict_masks, outputs.mask_features)
        return self.postprocessor.postprocess(
            outputs.logits[-1], outputs.boxes[-1], predict_masks, batched_inputs, images
        )

    def _predict_masks(self, features: MaskFeatures, index: int, queries: Tensor) -> Tensor:
        """Mask logits (R, h, w) of queries (R,) of one of the images."""
        assert self.mask_head is not None
        with precision(self):
            return self.mask_head(features.of_image(index), torch.zeros_like(queries), queries)  # type: ignore[no-any-return]


def _start_from_loaded_rows(model: Detr, _: Any) -> None:
    """The rows of ``query_embed`` count, a plain DETR's or an average's: the offsets make up for the anchors."""
    queries = model.training_queries
    if queries is None or queries.anchors is None:
        return
    rows = model.query_embed.weight
    if not torch.allclose(queries.kept_queries(), rows, atol=1e-5):
        queries.start_from(rows)
