"""From a config to the parts of a ``Detr``."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from detr.errors import InputError
from detr.modeling.backbone import build_detr_backbone, choose_feature, choose_pyramid, freeze_unused
from detr.modeling.criterion import SetCriterion
from detr.modeling.folded_resnet import checkpoint_blocks
from detr.modeling.mask_head import MaskHead
from detr.modeling.matcher import HungarianMatcher
from detr.modeling.panoptic import STUFF_MERGES
from detr.modeling.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from detr.modeling.postprocessing import PanopticSettings, Postprocessor
from detr.modeling.transformer import Transformer

CHECKPOINTED = ("backbone", "transformer", "mask_head")
INFERENCE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POSITION_ENCODINGS = {"sine": SinePositionEncoding, "learned": LearnedPositionEncoding}


def parts_from_config(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of ``Detr``: here cfg crosses into the model.

    Raises InputError for impossible sizes and combinations.
    """
    keys = cfg.MODEL.DETR
    _check_sizes(cfg)
    backbone = build_detr_backbone(cfg)
    in_feature = choose_feature(backbone, keys.IN_FEATURE)
    pyramid = choose_pyramid(backbone, in_feature) if cfg.MODEL.MASK_ON else ()
    shapes = backbone.output_shape()
    if len(shapes) > 1:
        freeze_unused(backbone, (in_feature, *pyramid))
    checkpointed = keys.ACTIVATION_CHECKPOINT
    if "backbone" in checkpointed and not checkpoint_blocks(backbone):
        raise InputError(
            "MODEL.DETR.ACTIVATION_CHECKPOINT has 'backbone', but that is for a ResNet of frozen norms "
            f"(MODEL.RESNETS.NORM FrozenBN), and MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}: leave it out"
        )
    matcher = HungarianMatcher(cost_class=1.0, cost_bbox=keys.L1_WEIGHT, cost_giou=keys.GIOU_WEIGHT)
    return {
        "backbone": backbone,
        "in_feature": in_feature,
        "position_encoding": POSITION_ENCODINGS[keys.POSITION_EMBEDDING](keys.HIDDEN_DIM),
        "transformer": Transformer(
            d=keys.HIDDEN_DIM,
            heads=keys.NHEADS,
            encoder_layers=keys.ENC_LAYERS,
            decoder_layers=keys.DEC_LAYERS,
            feedforward=keys.DIM_FEEDFORWARD,
            dropout=keys.DROPOUT,
            pre_norm=keys.PRE_NORM,
            checkpointed="transformer" in checkpointed,
        ),
        "criterion": SetCriterion(
            matcher=matcher,
            num_classes=keys.NUM_CLASSES,
            l1_weight=keys.L1_WEIGHT,
            giou_weight=keys.GIOU_WEIGHT,
            no_object_weight=keys.NO_OBJECT_WEIGHT,
        ),
        "num_classes": keys.NUM_CLASSES,
        "num_queries": keys.NUM_OBJECT_QUERIES,
        "postprocessor": Postprocessor(
            is_thing=_is_thing(cfg),
            score_threshold=keys.INSTANCE_SCORE_THRESHOLD,
            panoptic=PanopticSettings(keys.PANOPTIC.SCORE_THRESHOLD, keys.PANOPTIC.MIN_AREA, keys.PANOPTIC.STUFF_MERGE)
            if keys.PANOPTIC.ENABLED
            else None,
        ),
        "deep_supervision": keys.DEEP_SUPERVISION,
        "freeze_detr": cfg.MODEL.MASK_ON and (keys.FREEZE_DETR or bool(keys.FROZEN_WEIGHTS)),
        "mask_head": MaskHead(
            d=keys.HIDDEN_DIM,
            heads=keys.NHEADS,
            pyramid_channels=tuple(shapes[name].channels for name in pyramid),
            checkpointed="mask_head" in checkpointed,
        )
        if pyramid
        else None,
        "pyramid": pyramid,
        "inference_dtype": INFERENCE_DTYPES[keys.INFERENCE_DTYPE],
        "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
    }


def _is_thing(cfg: CfgNode) -> list[bool]:
    """For each class whether it is a thing, from the metadata of the first data set that numbers so many classes."""
    num_classes = cfg.MODEL.DETR.NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        metadata = MetadataCatalog.get(name)
        things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        stuff = set((metadata.get("stuff_dataset_id_to_contiguous_id") or {}).values())
        if things | stuff == set(range(num_classes)) and not things & stuff:
            return [index in things for index in range(num_classes)]
    if cfg.MODEL.DETR.PANOPTIC.ENABLED:
        raise InputError(
            "MODEL.DETR.PANOPTIC.ENABLED wants to know things from stuff, but none of the data sets "
            f"{(*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)} has metadata of {num_classes} classes, things and stuff, "
            "numbered from 0 in one space: register it so, or set MODEL.DETR.NUM_CLASSES to their number"
        )
    return [True] * num_classes


def _check_sizes(cfg: CfgNode) -> None:
    keys = cfg.MODEL.DETR
    d, heads = keys.HIDDEN_DIM, keys.NHEADS
    for key in ("NUM_CLASSES", "NUM_OBJECT_QUERIES", "HIDDEN_DIM", "NHEADS", "DIM_FEEDFORWARD", "DEC_LAYERS"):
        if keys[key] < 1:
            raise InputError(f"MODEL.DETR.{key} is {keys[key]}: it must be at least 1")
    if keys.POSITION_EMBEDDING not in POSITION_ENCODINGS:
        raise InputError(
            f"MODEL.DETR.POSITION_EMBEDDING is {keys.POSITION_EMBEDDING!r}: it must be one of "
            f"{', '.join(POSITION_ENCODINGS)}"
        )
    if keys.INFERENCE_DTYPE not in INFERENCE_DTYPES:
        raise InputError(
            f"MODEL.DETR.INFERENCE_DTYPE is {keys.INFERENCE_DTYPE!r}: it must be one of {', '.join(INFERENCE_DTYPES)}"
        )
    if not 0 <= keys.DROPOUT < 1:
        raise InputError(f"MODEL.DETR.DROPOUT is {keys.DROPOUT}: it must be at least 0 and below 1")
    if unknown := set(keys.ACTIVATION_CHECKPOINT) - set(CHECKPOINTED):
        raise InputError(
            f"MODEL.DETR.ACTIVATION_CHECKPOINT has {sorted(unknown)}: it takes any of {', '.join(CHECKPOINTED)}"
        )
    if d % heads:
        raise InputError(
            f"MODEL.DETR.HIDDEN_DIM {d} is not divisible by MODEL.DETR.NHEADS {heads}: every head takes an equal "
            f"share of it; {max(d // heads, 1) * heads} would do"
        )
    multiple = 4 if keys.POSITION_EMBEDDING == "sine" else 2
    if d % multiple:
        raise InputError(
            f"MODEL.DETR.HIDDEN_DIM {d} is not divisible by {multiple}: the {keys.POSITION_EMBEDDING} position "
            f"encoding gives half of it to each image axis; {max(d // multiple, 1) * multiple} would do"
        )
    if not cfg.MODEL.MASK_ON:
        for key, value in (
            ("PANOPTIC.ENABLED", keys.PANOPTIC.ENABLED),
            ("FREEZE_DETR", keys.FREEZE_DETR),
        ):
            if value:
                raise InputError(f"MODEL.DETR.{key} is {value!r}, which wants masks: set MODEL.MASK_ON True")
    if keys.PANOPTIC.STUFF_MERGE not in STUFF_MERGES:
        raise InputError(
            f"MODEL.DETR.PANOPTIC.STUFF_MERGE is {keys.PANOPTIC.STUFF_MERGE!r}: it must be one of "
            f"{', '.join(STUFF_MERGES)}"
        )
    if cfg.MODEL.MASK_ON and d % 16:
        raise InputError(
            f"MODEL.DETR.HIDDEN_DIM {d} is not divisible by 16: the mask head halves it four times; "
            f"{max(d // 16, 1) * 16} would do"
        )
