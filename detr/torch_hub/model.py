"""``HubDetr``: a released model that also takes and returns what the authors' hub models do, for their notebooks.

    model = hub_model("detr_R_50", pretrained=True)
    outputs = model(images)  # (N, 3, H, W) -> {"pred_logits": (N, 100, 92), "pred_boxes": (N, 100, 4)}

N  images, H x W their padded size in pixels
Q  queries, K classes without no-object
C  columns of the original's class head, which counts COCO's category ids: 92 for boxes, 251 for panoptic
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import ResNet
from detectron2.structures import ImageList
from torch import Tensor, nn

from detr import model_zoo
from detr.checkpoint.rows import COCO_ROWS, NEVER, coco_rows
from detr.errors import InputError
from detr.modeling.meta_arch import Detr
from detr.modeling.network import precision


class HubDetr(Detr):
    """A ``Detr`` that answers tensors as the original does, and Detectron2's list of dicts as every ``Detr``.

    Forward hooks work under the original's names, ``transformer.encoder.layers[-1].self_attn``,
    ``transformer.decoder.layers[-1].multihead_attn`` and ``backbone[-2]``. An attention computes its weights, the mean
    of its heads, only while it has a hook.
    """

    category_columns: Tensor | None

    @configurable
    def __init__(self, *, category_columns: Tensor | None = None, **parts: Any) -> None:
        """category_columns: (K + 1,), where each class and no-object are in the original's head; None for own classes
        parts: as of ``Detr``
        """
        super().__init__(**parts)
        self.register_buffer("category_columns", category_columns, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        parts = super().from_config(cfg)
        parts["backbone"].__class__ = IndexedResNet
        parts["backbone"].features = Features()
        for module in parts["transformer"].modules():
            if isinstance(module, nn.MultiheadAttention):
                module.register_forward_pre_hook(_weights_for_hooks, with_kwargs=True)
        num_classes = parts["num_classes"]
        return parts | {"category_columns": coco_rows(num_classes) if num_classes in COCO_ROWS.values() else None}

    @property
    def detr(self) -> "HubDetr":
        """The original's models with masks have their box model under this name."""
        return self

    def forward(self, inputs: Any) -> Any:
        """inputs: Detectron2's list of dicts, see ``Detr.forward``; or images as ``original_outputs`` takes them."""
        if isinstance(inputs, (list, tuple)) and all(isinstance(x, dict) for x in inputs):
            return super().forward(list(inputs))
        return self.original_outputs(inputs)

    def original_outputs(self, images: Any) -> dict[str, Tensor]:
        """What the original's models return, in training mode too; gradients are the caller's choice.

        images: (N, 3, H, W) float, normalized with mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225) of
            RGB in [0, 1]; a list of such (3, H_i, W_i); or the authors' NestedTensor, with its mask of the padding

        Returns ``pred_logits`` (N, Q, C), for own classes (N, Q, K + 1); ``pred_boxes`` (N, Q, 4), cxcywh in [0, 1] of
        the unpadded image; and of a model with masks ``pred_masks`` (N, Q, h, w), logits at stride 4 of the padded
        batch. Raises InputError for anything else than such images.
        """
        batch = [x.to(self.device) for x in _images(images)]
        padded = ImageList.from_tensors(
            batch, self.backbone.size_divisibility, padding_constraints=self.padding_constraints
        )
        network = self.forward_network(padded, return_intermediate=False)
        logits = network.logits[-1]
        if self.category_columns is not None:
            filled = logits.new_full((*logits.shape[:2], num_columns(self.num_classes)), NEVER)
            logits = filled.index_copy(2, self.category_columns, logits)
        outputs = {"pred_logits": logits, "pred_boxes": network.boxes[-1]}
        if self.mask_head is not None and network.mask_features is not None:
            n, q = logits.shape[:2]
            image_of = torch.arange(n, device=self.device).repeat_interleave(q, output_size=n * q)
            query_of = torch.arange(q, device=self.device).repeat(n)
            with precision(self):
                outputs["pred_masks"] = self.mask_head(network.mask_features, image_of, query_of).unflatten(0, (n, q))
        return outputs


class Nested(NamedTuple):
    """A feature map (N, C, h, w) under the name that it has in the original's hooks."""

    tensors: Tensor


class Features(nn.Module):
    """The original's ``backbone[-2]``: hooks see its feature maps, numbered from fine to coarse."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Nested]:
        return {str(index): Nested(feature) for index, feature in enumerate(features.values())}


class IndexedResNet(ResNet):  # type: ignore[misc]
    """A ResNet that shows its features to the hooks on ``backbone[-2]``."""

    features: Features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = super().forward(x)
        self.features(outputs)
        return outputs

    def __getitem__(self, index: int) -> Features:
        if index not in (0, -2):
            raise IndexError("of the original's backbone there is backbone[0], also backbone[-2]: its feature maps")
        return self.features


def hub_model(
    name: str, pretrained: bool = False, num_classes: int | None = None, threshold: float | None = None
) -> HubDetr:
    """A released model for torch.hub, on the CPU in evaluation mode.

    num_classes: as ``model_zoo.get``; or 91 for boxes and 250 for panoptic, as the original counts COCO's classes
    threshold: the score that a query needs to take part in a panoptic map

    Raises InputError as ``model_zoo.get``.
    """
    coco_classes = model_zoo.entry(name).num_classes
    if num_classes == num_columns(coco_classes) - 1:
        num_classes = coco_classes
    model = model_zoo.get(name, pretrained, "cpu", num_classes, HubDetr)
    if threshold is not None and model.postprocessor.panoptic is not None:
        model.postprocessor.panoptic = replace(model.postprocessor.panoptic, score_threshold=threshold)
    return model


def num_columns(num_classes: int) -> int:
    """How many columns the original's class head has for so many of COCO's classes, no-object included."""
    return next(columns for columns, classes in COCO_ROWS.items() if classes == num_classes)


def _images(images: Any) -> list[Tensor]:
    """Images (3, H_i, W_i) without padding. Raises InputError as ``original_outputs``."""
    if hasattr(images, "decompose"):
        tensors, mask = images.decompose()
        if mask is None:
            return _images(tensors)
        # Images lie at the top left: the lengths of the first column and the first row that are no padding.
        sizes = torch.stack([(~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)], dim=1).tolist()
        return _images([x[:, :height, :width] for x, (height, width) in zip(tensors, sizes, strict=True)])
    listed = list(images) if isinstance(images, (Tensor, list, tuple)) else [images]
    for x in listed:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3 and len(x) == 3):
            shown = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"the model got {shown} as an image: give normalized float images, a tensor (N, 3, H, W) or a list of "
                "(3, H, W); or Detectron2's list of dicts"
            )
    return listed


def _weights_for_hooks(
    attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"need_weights": bool(attention._forward_hooks)}
