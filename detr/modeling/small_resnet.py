"""A ResNet of basic blocks in any width, for data sets and machines that are small."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem

from detr.modeling.folded_resnet import fold_frozen_norms

BLOCKS_PER_STAGE = 2  # as ResNet-18


@BACKBONE_REGISTRY.register()
def build_small_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet-18 with ``MODEL.RESNETS.RES2_OUT_CHANNELS`` other than 64, which Detectron2's builder refuses."""
    keys = cfg.MODEL.RESNETS
    return build_small_resnet(
        in_channels=input_shape.channels,
        stem_channels=keys.STEM_OUT_CHANNELS,
        res2_channels=keys.RES2_OUT_CHANNELS,
        norm=keys.NORM,
        out_features=keys.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def build_small_resnet(
    *,
    stem_channels: int,
    res2_channels: int,
    norm: str,
    out_features: Sequence[str],
    freeze_at: int = 0,
    in_channels: int = 3,
) -> ResNet:
    """Widths double from stage to stage; the stages end with the last of ``out_features``, "res2" ... "res5".

    norm: as MODEL.RESNETS.NORM
    freeze_at: how many of stem, res2, ... are frozen, counted from the stem
    """
    channels, stages = stem_channels, []
    stem = BasicStem(in_channels, stem_channels, norm)
    last = max(int(name.removeprefix("res")) for name in out_features)
    for stage in range(2, last + 1):
        width = res2_channels * 2 ** (stage - 2)
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                BLOCKS_PER_STAGE,
                stride_per_block=[1 if stage == 2 else 2] + [1] * (BLOCKS_PER_STAGE - 1),
                in_channels=channels,
                out_channels=width,
                norm=norm,
            )
        )
        channels = width
    resnet = ResNet(stem, stages, out_features=out_features, freeze_at=freeze_at)
    fold_frozen_norms(resnet)
    return resnet.to(memory_format=torch.channels_last)  # a tenth faster on the CPU
