"""The parts of a ``Detr``, built from cfg."""

from typing import Any

import torch
from detectron2.config import CfgNode

from detr.config_checks import check_model_keys, warn_of_unread_keys
from detr.config_node import remember
from detr.config_values import check_memory
from detr.errors import InputError
from detr.modeling.backbone import (
    build_detr_backbone,
    checkpoint_backbone,
    choose_feature,
    choose_pyramid,
    freeze_unused,
)
from detr.modeling.criterion import SetCriterion
from detr.modeling.denoising import Denoising
from detr.modeling.mask_head import MaskHead
from detr.modeling.matcher import HungarianMatcher
from detr.modeling.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from detr.modeling.postprocessing import PanopticSettings, Postprocessor, which_are_things
from detr.modeling.training_queries import TrainingQueries
from detr.modeling.transformer import Transformer

POSITION_ENCODINGS = {"sine": SinePositionEncoding, "learned": LearnedPositionEncoding}


def build_parts(cfg: CfgNode) -> dict[str, Any]:
    """The arguments of ``Detr``. Raises InputError for impossible sizes and combinations."""
    check_model_keys(cfg)
    check_memory(cfg)
    remember(cfg.SOLVER, "OPTIMIZER")  # even if nobody set it, it is a Detr's optimizer from here on
    warn_of_unread_keys(cfg)
    keys = cfg.MODEL.DETR
    checkpointed = keys.ACTIVATION_CHECKPOINT
    backbone = build_detr_backbone(cfg)
    in_feature = choose_feature(backbone, keys.IN_FEATURE)
    pyramid = choose_pyramid(backbone, in_feature) if cfg.MODEL.MASK_ON else ()
    shapes = backbone.output_shape()
    if len(shapes) > 1:
        freeze_unused(backbone, (in_feature, *pyramid), channels=len(cfg.MODEL.PIXEL_MEAN))
    if "backbone" in checkpointed and not checkpoint_backbone(backbone):
        raise InputError(
            "MODEL.DETR.ACTIVATION_CHECKPOINT has 'backbone', but that is for a ResNet or a timm model without trained "
            "batch norms (MODEL.RESNETS.NORM or MODEL.TIMM.NORM FrozenBN), and MODEL.BACKBONE.NAME is "
            f"{cfg.MODEL.BACKBONE.NAME}: leave it out"
        )
    data_sets = (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)
    panoptic = PanopticSettings(keys.PANOPTIC.SCORE_THRESHOLD, keys.PANOPTIC.MIN_AREA, keys.PANOPTIC.STUFF_MERGE)
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
            matcher=HungarianMatcher(cost_class=1.0, cost_bbox=keys.L1_WEIGHT, cost_giou=keys.GIOU_WEIGHT),
            num_classes=keys.NUM_CLASSES,
            l1_weight=keys.L1_WEIGHT,
            giou_weight=keys.GIOU_WEIGHT,
            no_object_weight=keys.NO_OBJECT_WEIGHT,
            class_loss_mean=keys.CLASS_LOSS_MEAN,
        ),
        "postprocessor": Postprocessor(
            is_thing=which_are_things(
                keys.NUM_CLASSES, data_sets, required=keys.PANOPTIC.ENABLED, num_things=keys.PANOPTIC.THINGS
            ),
            score_threshold=keys.INSTANCE_SCORE_THRESHOLD,
            max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
            panoptic=panoptic if keys.PANOPTIC.ENABLED else None,
        ),
        "num_classes": keys.NUM_CLASSES,
        "num_queries": keys.NUM_OBJECT_QUERIES,
        "deep_supervision": keys.DEEP_SUPERVISION,
        "training_queries": _training_queries(keys),
        "mask_head": MaskHead(
            d=keys.HIDDEN_DIM,
            heads=keys.NHEADS,
            pyramid_channels=tuple(shapes[name].channels for name in pyramid),
            checkpointed="mask_head" in checkpointed,
        )
        if pyramid
        else None,
        "pyramid": pyramid,
        "freeze_detr": cfg.MODEL.MASK_ON and (keys.FREEZE_DETR or bool(keys.FROZEN_WEIGHTS)),
        "inference_dtype": getattr(torch, keys.INFERENCE_DTYPE),
        "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        # Only where it is asked for: subclasses whose constructors list their arguments need not know it.
        **({"images_alone": True} if keys.IMAGES_ALONE else {}),
        **({"pad_multiple": keys.PAD_MULTIPLE} if keys.PAD_MULTIPLE > 1 else {}),
        **({"compile_mode": keys.COMPILE} if keys.COMPILE else {}),
    }


def _training_queries(keys: CfgNode) -> TrainingQueries | None:
    """keys: MODEL.DETR; None where all of its training queries are off."""
    noise = keys.DENOISING
    if not (noise.ENABLED or keys.ANCHOR_QUERIES or keys.QUERY_GROUPS > 1):
        return None
    return TrainingQueries(
        num_queries=keys.NUM_OBJECT_QUERIES,
        d=keys.HIDDEN_DIM,
        groups=keys.QUERY_GROUPS,
        anchors=keys.ANCHOR_QUERIES,
        denoising=Denoising(keys.NUM_CLASSES, noise.COPIES, noise.BOX_NOISE, noise.LABEL_NOISE, noise.NEGATIVES)
        if noise.ENABLED
        else None,
    )
