"""The backbone adapter: any Detectron2 backbone gives the feature map and its padding mask."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, MViT, ResNet, SimpleFeaturePyramid, SwinTransformer, ViT, build_backbone
from detectron2.structures import ImageList
from torch import Tensor

from detr.errors import InputError
from detr.modeling.folded_resnet import checkpoint_blocks, fold_frozen_norms

RESNET_STAGES = ("res2", "res3", "res4", "res5")
# These raise errors of many kinds for values of MODEL.RESNETS.
RESNET_BUILDERS = ("build_resnet_backbone", "build_small_resnet_backbone")
PYRAMID_STRIDES = (16, 8, 4)  # of the maps that the mask head reads: res4, res3, res2


def build_detr_backbone(cfg: CfgNode) -> Backbone:
    """Builds ``cfg.MODEL.BACKBONE.NAME``, and gives a dilated ResNet the original's dilation.

    With masks, a ResNet gives the stages below its last one too, whether ``OUT_FEATURES`` lists them or not.
    """
    if cfg.MODEL.MASK_ON:
        cfg = _with_lower_stages(cfg)
    try:
        backbone = build_backbone(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, InputError) or cfg.MODEL.BACKBONE.NAME not in RESNET_BUILDERS:
            raise
        raise InputError(
            f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} cannot be built ({type(error).__name__}: {error}): correct "
            "the keys of MODEL.RESNETS, such as DEPTH, OUT_FEATURES, NUM_GROUPS and NORM, or MODEL.BACKBONE.FREEZE_AT"
        ) from error
    if isinstance(backbone, ResNet) and cfg.MODEL.RESNETS.RES5_DILATION == 2 and "res5" in backbone.stage_names:
        _undilate_first_block(backbone)
    fold_frozen_norms(backbone)
    return pad_to_patches(backbone)


class _WholePatches:
    """Images are padded to multiples of the coarsest stride."""

    @property
    def size_divisibility(self: Any) -> int:
        return max(shape.stride for shape in self.output_shape().values())  # type: ignore[no-any-return]

    @property
    def padding_constraints(self: Any) -> dict[str, int]:
        square = super().padding_constraints.get("square_size", 0)  # type: ignore[misc]
        return {"square_size": square} if square else {}


class PaddedViT(_WholePatches, ViT):
    """Detectron2's ViT leaves out pixels that fill no patch."""


class PaddedMViT(_WholePatches, MViT):
    """Detectron2's rounds up at every stage, so that features of odd sizes lie beside their positions."""


class PaddedPyramid(_WholePatches, SimpleFeaturePyramid):
    """Detectron2's misspells the key of its divisibility, so that nobody reads it."""


class PaddedSwin(_WholePatches, SwinTransformer):
    """Detectron2's misspells the attribute of its divisibility, so that reading it fails."""


_PADDED: dict[type, type] = {
    ViT: PaddedViT,
    MViT: PaddedMViT,
    SimpleFeaturePyramid: PaddedPyramid,
    SwinTransformer: PaddedSwin,
}


def backbone_arguments(cfg: CfgNode) -> dict[str, Any]:
    """MODEL.BACKBONE.ARGUMENTS by their names. Raises InputError for anything else than (name, value) pairs."""
    pairs = cfg.MODEL.BACKBONE.ARGUMENTS
    if not all(isinstance(x, (list, tuple)) and len(x) == 2 and isinstance(x[0], str) for x in pairs):
        raise InputError(
            f"MODEL.BACKBONE.ARGUMENTS is {tuple(pairs)}: it must be (name, value) pairs, such as "
            "(('drop_path_rate', 0.1),)"
        )
    return dict(pairs)


def pad_to_patches(backbone: Backbone) -> Backbone:
    """The same backbone, which asks for images of whole patches where Detectron2's own asks for nothing."""
    backbone.__class__ = _PADDED.get(type(backbone), type(backbone))
    return backbone


def padding_constraints(backbone: Backbone, multiple: int) -> dict[str, int]:
    """Detectron2's of the backbone, with sides that are multiples of so many pixels besides."""
    constraints = dict(backbone.padding_constraints)
    if multiple > 1:
        of_backbone = constraints.get("size_divisibility", backbone.size_divisibility)
        constraints["size_divisibility"] = math.lcm(max(of_backbone, 1), multiple)
    return constraints


def _undilate_first_block(backbone: ResNet) -> None:
    """Makes the dilation of res5 [1, 2, 2] over its blocks, as in torchvision's ResNet.

    Detectron2 dilates all three convolutions, [2, 2, 2]. With the weights of a released DC5 model
    that is a different function, and only a lower AP would show it.
    """
    conv = backbone.res5[0].conv2
    conv.dilation = (1, 1)
    conv.padding = (1, 1)


def _with_lower_stages(cfg: CfgNode) -> CfgNode:
    listed = cfg.MODEL.RESNETS.OUT_FEATURES
    deepest = max(set(RESNET_STAGES) & set(listed), default="")
    stages = [stage for stage in RESNET_STAGES if stage <= deepest]
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.OUT_FEATURES = [*(name for name in listed if name not in stages), *stages]
    return cfg


def freeze_unused(backbone: Backbone, features: Sequence[str], channels: int = 3) -> None:
    """Freezes what feeds none of ``features``, as the other levels of a pyramid; channels: of the image.

    Distributed training waits for the gradient of every trainable parameter, and would never stop waiting for theirs.
    """
    side = 4 * max(backbone.size_divisibility, 32)
    training = backbone.training
    with torch.enable_grad():
        outputs = backbone.eval()(torch.zeros(1, channels, side, side))  # in evaluation, statistics of norms stay
        total = sum(outputs[name].sum() for name in features)
    backbone.train(training)
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    if trainable:
        gradients = torch.autograd.grad(total, trainable, allow_unused=True)
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)


def checkpoint_backbone(backbone: Backbone) -> bool:
    """Lets the blocks of a backbone compute their insides again for the gradient. Returns whether it can.

    A backbone of one's own can where it has a ``checkpoint_blocks`` that returns True.
    """
    own = getattr(backbone, "checkpoint_blocks", None)
    return own() if own is not None else checkpoint_blocks(backbone)


def choose_feature(backbone: Backbone, name: str) -> str:
    """The feature that the transformer reads: ``name``, or the backbone's last where it is "".

    Raises InputError where the backbone has no such feature.
    """
    features = list(backbone.output_shape())
    if name and name not in features:
        raise InputError(
            f"MODEL.DETR.IN_FEATURE is {name!r}, but the backbone gives {', '.join(features)}: name one of these, "
            'or "" for the last'
        )
    return name or features[-1]


def choose_pyramid(backbone: Backbone, in_feature: str) -> tuple[str, str, str]:
    """The features that the mask head joins, of strides 16, 8 and 4: masks come out at stride 4.

    Where two have one stride, as res4 and res5 under DC5, it is not ``in_feature``. Raises InputError where the
    backbone lacks one.
    """
    names = {}
    for name, shape in backbone.output_shape().items():
        if name != in_feature or shape.stride not in names:
            names[shape.stride] = name
    missing = [stride for stride in PYRAMID_STRIDES if stride not in names]
    if missing:
        given = ", ".join(f"{name} ({shape.stride})" for name, shape in backbone.output_shape().items())
        raise InputError(
            f"MODEL.MASK_ON needs backbone features of stride 16, 8 and 4, but the backbone gives {given}: let it give "
            "these strides too, or set MODEL.MASK_ON False"
        )
    coarse, middle, fine = (names[stride] for stride in PYRAMID_STRIDES)
    return coarse, middle, fine


def padded_sizes(images: ImageList) -> Tensor | None:
    """(N, 2): height and width of each image without its padding, on the batch's device.

    None where no image is padded: attention needs no mask then.
    """
    padded_size = tuple(images.tensor.shape[-2:])
    if all(tuple(size) == padded_size for size in images.image_sizes):
        return None
    return torch.tensor(images.image_sizes).to(images.device, non_blocking=True)


def sampled_padding(sizes: Tensor, padded_size: tuple[int, int], feature_size: tuple[int, int]) -> Tensor:
    """Like the original's, the nearest-neighbor sample of the padding in pixels: (N, h, w) bool, True = padding.

    It differs from ceil(size / stride).

    sizes: (N, 2) height and width of each image in pixels, without padding
    padded_size, feature_size: (height, width) of the batch in pixels, and of the feature map
    """
    sampled = [_nearest(*lengths, sizes.device) for lengths in zip(padded_size, feature_size, strict=True)]
    rows, columns = (x >= size[:, None] for x, size in zip(sampled, sizes.unbind(1), strict=True))
    return rows[:, :, None] | columns[:, None]


def _nearest(length: int, samples: int, device: torch.device) -> Tensor:
    """(samples,): which of ``length`` pixels torch's nearest-neighbor resampling takes, in its own precision."""
    return (torch.arange(samples, dtype=torch.float32, device=device) * (length / samples)).floor()
