"""Values that no training can have are one line before anything is built."""

import math

import pytest

from detr.config_values import BOUNDS, check_memory, check_values
from detr.engine.defaults import check_config, load_config
from detr.errors import InputError
from detr.modeling.backbone import build_detr_backbone
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.DETR.GIOU_WEIGHT", math.nan, r"is nan: it must be a number, from 0 to 1000000"),
        ("MODEL.DETR.ENC_LAYERS", 10**9, r"is 1000000000: it must be a whole number, from 0 to 100"),
        ("MODEL.DETR.ENC_LAYERS", -1, "is -1"),
        ("SOLVER.BASE_LR", math.inf, "is inf"),
        ("SOLVER.BASE_LR", None, r"has no value: set it, as in SOLVER\.BASE_LR 0\.001"),
        ("SOLVER.STEPS", (1, math.nan), "each must be a whole number"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", math.nan, "at least 0.01"),
        ("INPUT.MIN_SIZE_TRAIN", (10**6,), "each must be a whole number, from 0 to 20000"),
        ("DATASETS.TRAIN", (1,), "must hold texts"),
        ("MODEL.PIXEL_STD", [0.0, 1.0, 1.0], "each must be a number"),
        ("MODEL.PIXEL_MEAN", [1.0], r"and MODEL\.PIXEL_STD is \[58.*\]: each must have one number for each channel"),
        ("MODEL.DEVICE", "x", "must be cpu, cuda or cuda with a number"),
        ("SEED", 2**40, "at most 4000000000"),
    ],
)
def test_a_value_that_no_training_can_have_is_named(tiny_config, key, value, message):
    cfg = tiny_config()
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=rf"{key} .*{message}"):
        check_config(cfg, training=True)


def test_names_that_a_subclass_may_add_pass(tiny_config):
    """Their builders, Detectron2's or ours, refuse them where nobody has overridden these."""
    keys = ("INPUT.FORMAT", "MODEL.RESNETS.NORM", "SOLVER.LR_SCHEDULER_NAME", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE")
    check_config(tiny_config({**dict.fromkeys(keys, "mine"), "MODEL.RESNETS.DEPTH": 26}), training=True)


def test_every_config_here_passes():
    for path in sorted(ROOT.glob("configs/**/*.yaml")):
        check_values(load_config(str(path), []))


def test_the_table_names_keys_that_exist(tiny_config):
    cfg = tiny_config()
    for key in BOUNDS:
        node = cfg
        for part in key.split("."):
            node = node[part]


def test_a_model_larger_than_the_memory_is_one_line(tiny_config):
    cfg = tiny_config({"MODEL.DETR.HIDDEN_DIM": 10_000, "MODEL.DETR.DIM_FEEDFORWARD": 10**6})
    cfg.MODEL.DETR.ENC_LAYERS = cfg.MODEL.DETR.DEC_LAYERS = 100
    with pytest.raises(InputError, match=r"the model would have 4\.1e\+12 parameters of 16\d+ GB, and this machine"):
        check_memory(cfg)


@pytest.mark.parametrize(
    "settings",
    [
        {"MODEL.RESNETS.NORM": "GN", "MODEL.RESNETS.STEM_OUT_CHANNELS": 17},
        {"MODEL.RESNETS.OUT_FEATURES": ["res9"]},
        {"MODEL.RESNETS.OUT_FEATURES": []},
    ],
    ids=str,
)
def test_a_resnet_that_cannot_be_built_is_one_line(tiny_config, settings):
    with pytest.raises(InputError, match=r"^MODEL\.BACKBONE\.NAME build_small_resnet_backbone cannot be built \("):
        build_detr_backbone(tiny_config(settings))
