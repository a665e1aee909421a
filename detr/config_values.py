"""Which values config keys may have, as one table: what no training can have is an error before anything is built.

Names, which a subclass may add to, and keys that must fit each other are checked where they are read.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from detr.config import add_detr_config
from detr.errors import InputError

MANY = 10**12  # iterations, epochs
LARGEST = 1e6  # factor, weight

# Key -> its least and its largest number; of a tuple, of each of its numbers
BOUNDS: dict[str, tuple[float, float]] = {
    **{f"MODEL.DETR.{key}": (0, LARGEST) for key in ("GIOU_WEIGHT", "L1_WEIGHT", "NO_OBJECT_WEIGHT")},
    **{f"MODEL.DETR.{key}": (1, 10_000) for key in ("NUM_OBJECT_QUERIES", "HIDDEN_DIM", "NHEADS", "QUERY_GROUPS")},
    "MODEL.DETR.NUM_CLASSES": (1, LARGEST),
    "MODEL.DETR.DIM_FEEDFORWARD": (1, LARGEST),
    "MODEL.DETR.ENC_LAYERS": (0, 100),
    "MODEL.DETR.DEC_LAYERS": (1, 100),
    "MODEL.DETR.DENOISING.COPIES": (1, 1000),
    "MODEL.DETR.PAD_MULTIPLE": (0, 10_000),
    "MODEL.DETR.INSTANCE_SCORE_THRESHOLD": (0, 1),
    "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": (0, 1),
    "MODEL.DETR.PANOPTIC.MIN_AREA": (0, math.inf),
    **{f"MODEL.RESNETS.{key}": (1, 10_000) for key in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP")},
    "MODEL.RESNETS.NUM_GROUPS": (1, 10_000),
    "MODEL.PIXEL_MEAN": (-LARGEST, LARGEST),
    "MODEL.PIXEL_STD": (1e-6, LARGEST),
    **{f"SOLVER.{key}": (0, MANY) for key in ("MAX_EPOCHS", "CHECKPOINT_EPOCHS", "CHECKPOINTS_KEPT", "PATIENCE")},
    **{f"SOLVER.{key}": (0, MANY) for key in ("MAX_ITER", "STEPS", "WARMUP_ITERS", "DROP_EPOCHS")},
    **{
        f"SOLVER.{key}": (0, 1e30) for key in ("BASE_LR", "BASE_LR_END", "BACKBONE_MULTIPLIER", "WEIGHT_DECAY", "GAMMA")
    },
    **{f"SOLVER.{key}": (0, 1) for key in ("MOMENTUM", "WARMUP_FACTOR")},
    "SOLVER.NUM_DECAYS": (0, 1000),
    "SOLVER.CHECKPOINT_PERIOD": (1, MANY),
    "SOLVER.IMS_PER_BATCH": (1, LARGEST),
    "SOLVER.REFERENCE_WORLD_SIZE": (0, LARGEST),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": (0, LARGEST),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": (0.01, math.inf),
    "INPUT.MIN_SIZE_TRAIN": (0, 20_000),
    "INPUT.MIN_SIZE_TEST": (0, 20_000),
    **{f"INPUT.{key}": (1, 2**31) for key in ("MAX_SIZE_TRAIN", "MAX_SIZE_TEST")},
    "DATALOADER.NUM_WORKERS": (0, 1000),
    "DATALOADER.REPEAT_THRESHOLD": (0, 1),
    **{f"TEST.{key}": (0, MANY) for key in ("EVAL_PERIOD", "EVAL_EPOCHS")},
    "TEST.IMS_PER_BATCH": (1, LARGEST),
    "TEST.DETECTIONS_PER_IMAGE": (-1, LARGEST),  # -1: all of them
    "TEST.PRECISE_BN.NUM_ITER": (1, LARGEST),
    # Below 0: another one each time. Detectron2 adds the rank to it, and numpy's are below 2**32.
    "SEED": (-math.inf, 4 * 10**9),
}
TEXTS = ("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.RESNETS.OUT_FEATURES", "MODEL.DETR.ACTIVATION_CHECKPOINT")


def check_values(cfg: CN) -> None:
    """Raises InputError, which names key and value, for a value that the table excludes, NaN and None among them."""
    defaults = get_cfg()
    add_detr_config(defaults)
    for key, value, default in _leaves(cfg, defaults):
        if value is None and default is not None:
            raise InputError(f"{key} has no value: set it, as in {key} {default!r}")
        if key in TEXTS and not all(isinstance(x, str) for x in value):
            raise InputError(f"{key} is {value!r}: it must hold texts")
        if key in BOUNDS:
            _check_bounds(key, value, whole=not isinstance(default, float))
    _check_pixels(cfg)
    _check_device(cfg.MODEL.DEVICE)


def check_memory(cfg: CN) -> None:
    """Raises InputError where the transformer's parameters alone would not fit into this machine's memory."""
    keys = cfg.MODEL.DETR
    d, hidden = keys.HIDDEN_DIM, keys.DIM_FEEDFORWARD
    layer = 4 * d * d + 2 * d * hidden
    count = keys.ENC_LAYERS * layer + keys.DEC_LAYERS * (layer + 4 * d * d)
    count += d * (keys.NUM_CLASSES + keys.NUM_OBJECT_QUERIES * keys.QUERY_GROUPS)
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if 4 * count > there:
        raise InputError(
            f"the model would have {count:.1e} parameters of {4 * count / 1e9:.0f} GB, and this machine has "
            f"{there / 1e9:.0f} GB: lower MODEL.DETR.HIDDEN_DIM, DIM_FEEDFORWARD, ENC_LAYERS, DEC_LAYERS, NUM_CLASSES, "
            "NUM_OBJECT_QUERIES or QUERY_GROUPS"
        )


def _leaves(cfg: CN, defaults: CN, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value, default) of all keys that Detectron2 or ``add_detr_config`` know."""
    for name, default in defaults.items():
        if name not in cfg:
            continue
        if isinstance(default, CN):
            if isinstance(cfg[name], CN):
                yield from _leaves(cfg[name], default, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", cfg[name], default


def _check_bounds(key: str, value: Any, whole: bool) -> None:
    low, high = BOUNDS[key]
    are_whole = whole and key not in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
    for number in value if isinstance(value, (list, tuple)) else [value]:
        right = isinstance(number, int if are_whole else (int, float)) and not isinstance(number, bool)
        if not right or not low <= number <= high:
            kind = "a whole number" if are_whole else "a number"
            reach = f"at least {low:.10g}" if math.isinf(high) else f"from {low:.10g} to {high:.10g}"
            reach = f"at most {high:.10g}" if math.isinf(low) else reach
            what = f"{value!r}: each must be" if isinstance(value, (list, tuple)) else f"{value!r}: it must be"
            raise InputError(f"{key} is {what} {kind}, {reach}")


def _check_pixels(cfg: CN) -> None:
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if not mean or len(mean) != len(std):
        raise InputError(
            f"MODEL.PIXEL_MEAN is {list(mean)} and MODEL.PIXEL_STD is {list(std)}: each must have one number for each "
            "channel of an image"
        )


def _check_device(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError as error:
        raise InputError(f"MODEL.DEVICE is {name!r}: it must be cpu, cuda or cuda with a number, as cuda:0") from error
