"""Builders for Detectron2's backbones that have none: RegNet, Swin, ViT and MViT.

Each builds a small model, which Detectron2 has a baseline of or, for Swin, which its class builds by default;
``MODEL.BACKBONE.ARGUMENTS`` changes the arguments of the class. All give features of strides 4 to 32, except the ViT,
which has one of stride 16.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, MViT, SimpleFeaturePyramid, SwinTransformer, ViT
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from torch import nn

from detr.errors import InputError
from detr.modeling.backbone import backbone_arguments

PYRAMID_SCALES = (4.0, 2.0, 1.0)  # of the ViT's feature: strides 4, 8 and 16, which the mask head reads
PYRAMID_CHANNELS = 256


@BACKBONE_REGISTRY.register()
def build_regnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> RegNet:
    """RegNetX-4GF, with ``MODEL.RESNETS.NORM`` and ``MODEL.BACKBONE.FREEZE_AT`` as a ResNet has them."""
    if input_shape.channels != 3:
        raise InputError(f"Detectron2's RegNet reads 3 channels, and MODEL.PIXEL_MEAN has {input_shape.channels}")
    return _build(
        RegNet,
        cfg,
        stem_class=SimpleStem,
        stem_width=32,
        block_class=ResBottleneckBlock,
        depth=23,
        w_a=38.65,
        w_0=96,
        w_m=2.43,
        group_width=40,
        norm=cfg.MODEL.RESNETS.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        out_features=["s1", "s2", "s3", "s4"],
    )


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinTransformer:
    """Swin-T; ``MODEL.BACKBONE.FREEZE_AT`` 1 freezes the patch embedding, 2 the first stage too, and so on."""
    frozen = cfg.MODEL.BACKBONE.FREEZE_AT or -1  # 0 would freeze the patch embedding
    return _build(SwinTransformer, cfg, in_chans=input_shape.channels, frozen_stages=frozen)


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """ViT-B as in ViTDet; with masks, a pyramid of strides 4, 8 and 16 on it."""
    _check_nothing_frozen(cfg, "ViT")
    vit = _build(
        ViT,
        cfg,
        in_chans=input_shape.channels,
        drop_path_rate=0.1,
        use_rel_pos=True,
        window_size=14,
        window_block_indexes=[0, 1, 3, 4, 6, 7, 9, 10],  # the others see the whole image
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
    )
    if not cfg.MODEL.MASK_ON:
        return vit
    (feature,) = vit.output_shape()
    return SimpleFeaturePyramid(vit, feature, PYRAMID_CHANNELS, PYRAMID_SCALES)


@BACKBONE_REGISTRY.register()
def build_mvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> MViT:
    """MViTv2-T."""
    _check_nothing_frozen(cfg, "MViT")
    return _build(
        MViT,
        cfg,
        in_chans=input_shape.channels,
        embed_dim=96,
        depth=10,
        num_heads=1,
        last_block_indexes=(0, 2, 7, 9),
        residual_pooling=True,
        drop_path_rate=0.2,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        out_features=("scale2", "scale3", "scale4", "scale5"),
    )


def _build(kind: Callable[..., Any], cfg: CfgNode, **arguments: Any) -> Any:
    given = backbone_arguments(cfg)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Importing from timm", category=FutureWarning)  # an old path
            return kind(**{**arguments, **given})
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise InputError(
            f"{cfg.MODEL.BACKBONE.NAME} needs timm, which is not installed: pip install 'detectron2-detr[timm]'"
        ) from None
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(
            f"Detectron2's backbone cannot be built with MODEL.BACKBONE.ARGUMENTS {given}: {error}"
        ) from error


def _check_nothing_frozen(cfg: CfgNode, kind: str) -> None:
    if cfg.MODEL.BACKBONE.FREEZE_AT:
        raise InputError(
            f"MODEL.BACKBONE.FREEZE_AT is {cfg.MODEL.BACKBONE.FREEZE_AT}, but Detectron2's {kind} cannot freeze "
            "stages: set it to 0"
        )
