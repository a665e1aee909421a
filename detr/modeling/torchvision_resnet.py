"""The ResNet of the paper, built from plain arguments: the backbone of the configs in configs/lazy."""

from collections.abc import Sequence

from detectron2.modeling import ResNet
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock

from detr.modeling.folded_resnet import fold_frozen_norms


def build_torchvision_resnet(
    depth: int, *, dilated: bool = False, out_features: Sequence[str] = ("res5",), freeze_at: int = 2
) -> ResNet:
    """What ``build_detr_backbone`` makes of a YAML config: torchvision's ResNet with frozen batch norms.

    depth: 50, 101 or 152
    dilated: res5 has stride 1 and the dilations [1, 2, 2] over its blocks (DC5)
    out_features: of "res2" ... "res5"; a mask head needs all four
    freeze_at: how many of stem, res2, ... are frozen, counted from the stem
    """
    options = {"stride_in_1x1": False, "norm": "FrozenBN"}
    stages = ResNet.make_default_stages(depth, **options)
    if dilated:
        stages[-1] = ResNet.make_stage(
            BottleneckBlock,
            len(stages[-1]),
            stride_per_block=[1, 1, 1],
            dilation_per_block=[1, 2, 2],
            in_channels=1024,
            bottleneck_channels=512,
            out_channels=2048,
            **options,
        )
    backbone = ResNet(BasicStem(norm="FrozenBN"), stages, out_features=list(out_features), freeze_at=freeze_at)
    fold_frozen_norms(backbone)
    return backbone
