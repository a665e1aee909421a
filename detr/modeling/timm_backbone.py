"""Any model of timm that gives features, as a Detectron2 backbone; timm is an extra.

N  images, C channels, H x W their size in pixels
"""

import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detr.errors import InputError
from detr.modeling.backbone import PYRAMID_STRIDES, backbone_arguments
from detr.modeling.timm_models import MISTAKES, check_indices, create, first_line, freeze_norms, freeze_stages

NORMS = ("FrozenBN", "BN")
WINDOWS = (1, 7, 8, 12, 16)  # sides of windows that the coarsest feature may have to consist of
SAME_INPUT = 1.0  # of 0..255; smaller differences of means or deviations come from rounding

logger = logging.getLogger(__name__)


class TimmBackbone(Backbone):
    """The features of a timm model. They are called ``feature0``, ``feature1`` and so on, as timm numbers them."""

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        out_indices: Sequence[int] = (-1,),
        in_channels: int = 3,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Builds the model with random weights.

        name: as timm has it, with or without the tag of the weights
        pretrained: whether a training that starts without other weights starts from timm's (``load_pretrained``)
        out_indices: which features to give, from the end where negative
        in_channels: of the image
        norm: "FrozenBN": batch norms keep their statistics and weights; "BN": they are trained. Other norms stay
        freeze_at: the features of strides up to 2 ** freeze_at are frozen, as the stem and res2 of a ResNet with 2;
            0 freezes nothing
        arguments: more of ``timm.create_model``, such as ``drop_path_rate``

        Raises InputError where timm is missing, for an unknown name, and for a model that cannot be built like this,
        gives no features, or takes images of one size only.
        """
        super().__init__()
        if norm not in NORMS:
            raise InputError(f"MODEL.TIMM.NORM is {norm!r}: it must be one of {', '.join(NORMS)}")
        check_indices(out_indices)
        self.name, self.pretrained = name, pretrained
        self._arguments = {**(arguments or {}), "in_chans": in_channels, "out_indices": tuple(out_indices)}
        body = create(name, self._arguments)
        self.reductions = [info["reduction"] for info in body.feature_info.info]
        indices = sorted({index % len(self.reductions) for index in out_indices})
        if indices != list(body.feature_info.out_indices):  # in another order, or some from the end
            self._arguments["out_indices"] = tuple(indices)
            body = create(name, self._arguments)
        self.out_indices = tuple(indices)
        self._out_features = [f"feature{index}" for index in indices]
        self._out_feature_channels = dict(zip(self._out_features, body.feature_info.channels(), strict=True))
        self._out_feature_strides = {f"feature{index}": self.reductions[index] for index in indices}
        self._channels_last = getattr(body, "output_fmt", None) == "NHWC"
        freeze_stages(body, name, freeze_at)
        freeze_norms(body, everywhere=norm == "FrozenBN")
        self.body = body
        self._multiple = self._find_multiple(in_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (N, C, H, W), H and W divisible by ``size_divisibility``.

        Returns name -> (N, C_i, H / stride_i, W / stride_i).
        """
        features = self.body(x)
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return dict(zip(self._out_features, features, strict=True))

    @property
    def size_divisibility(self) -> int:
        """The coarsest stride, with which no model cuts off a border; a multiple of it where windows must fit."""
        return self._multiple

    def load_pretrained(self) -> None:
        """Fetches timm's weights, or takes them from timm's cache.

        Raises InputError where there are none, or they cannot be had.
        """
        own = self.body.state_dict()
        try:
            weights = create(self.name, self._arguments, pretrained=True).state_dict()
            self.body.load_state_dict({key: weights[key] for key in own})
        except Exception as error:  # a download fails in a dozen ways
            raise InputError(
                f"timm's weights of {self.name} cannot be had: {first_line(error)}; name weights in MODEL.WEIGHTS, or "
                "set MODEL.TIMM.PRETRAINED False to start from random ones"
            ) from error

    def checkpoint_blocks(self) -> bool:
        """Lets blocks compute their insides again for the gradient. Returns whether the model can."""
        if any(isinstance(module, _BatchNorm) for module in self.body.modules()):
            return False  # their statistics would move twice
        for module in (self.body, getattr(self.body, "model", None)):
            if module is not None and hasattr(module, "set_grad_checkpointing"):
                module.set_grad_checkpointing(True)
                return True
        return False

    @torch.no_grad()
    def _find_multiple(self, channels: int) -> int:
        """Tries a small image of two unequal sides, with wider windows if it must."""
        stride, reasons = max(self.reductions), []
        self.eval()
        for window in WINDOWS:
            height, width = (5 * stride, 7 * stride) if window == 1 else (window * stride, 2 * window * stride)
            try:
                self(torch.zeros(1, channels, height, width))
            except MISTAKES as error:
                reasons.append(f"{height} x {width} pixels raise {first_line(error)}")
            else:
                self.train()
                return window * stride
        raise InputError(
            f"MODEL.TIMM.NAME {self.name} does not take images of any size: {reasons[0]}; choose a model that "
            "does, see docs/backbones.md"
        )


def load_pretrained(model: nn.Module) -> list[str]:
    """Loads timm's weights into the backbones inside that want them. Returns these backbones' names."""
    backbones = [module for module in model.modules() if isinstance(module, TimmBackbone) and module.pretrained]
    for backbone in backbones:
        backbone.load_pretrained()
        logger.info("the backbone starts from timm's weights of %s", backbone.name)
    return [backbone.name for backbone in backbones]


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """The model ``MODEL.TIMM.NAME``; with masks, its features of strides 16, 8 and 4 too, listed or not.

    Raises InputError as ``TimmBackbone`` does.
    """
    keys = cfg.MODEL.TIMM
    if not keys.NAME:
        raise InputError('MODEL.TIMM.NAME is empty: name a model of timm, such as "convnext_tiny"')

    def build(out_indices: Iterable[int]) -> TimmBackbone:
        return TimmBackbone(
            keys.NAME,
            pretrained=keys.PRETRAINED,
            out_indices=tuple(out_indices),
            in_channels=input_shape.channels,
            norm=keys.NORM,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
            arguments=backbone_arguments(cfg),
        )

    backbone = build(keys.OUT_INDICES or (-1,))
    if cfg.MODEL.MASK_ON:
        last = {stride: index for index, stride in enumerate(backbone.reductions)}
        indices = {*backbone.out_indices, *(last[stride] for stride in PYRAMID_STRIDES if stride in last)}
        if len(indices) > len(backbone.out_indices):
            backbone = build(indices)
    if keys.PRETRAINED and not cfg.MODEL.WEIGHTS:
        _warn_of_input(backbone, cfg)
    if not keys.PRETRAINED and not cfg.MODEL.WEIGHTS and keys.NORM == "FrozenBN" and _has_batch_norms(backbone):
        # Some models start with a zero weight in the last norm of every block: frozen, the block would give nothing.
        logger.warning(
            "the batch norms of %s are frozen as they are initialized: set MODEL.TIMM.NORM BN, or "
            "MODEL.TIMM.PRETRAINED True, or name weights in MODEL.WEIGHTS",
            keys.NAME,
        )
    return backbone


def _has_batch_norms(backbone: TimmBackbone) -> bool:
    return any(name.endswith("running_var") for name, _ in backbone.named_buffers())


def _warn_of_input(backbone: TimmBackbone, cfg: CfgNode) -> None:
    """Where images do not look as those that timm's weights were trained on."""
    pretrained = backbone.body.pretrained_cfg
    mean, std = ([round(255 * value, 3) for value in pretrained[key]] for key in ("mean", "std"))
    given = (*cfg.MODEL.PIXEL_MEAN, *cfg.MODEL.PIXEL_STD)
    if len(given) != len(mean) + len(std):
        return
    near = all(abs(a - b) <= SAME_INPUT for a, b in zip(given, itertools.chain(mean, std), strict=True))
    if not near or cfg.INPUT.FORMAT != "RGB":
        logger.warning(
            "timm's weights of %s were trained on other inputs: set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN %s and "
            "MODEL.PIXEL_STD %s",
            backbone.name,
            mean,
            std,
        )
