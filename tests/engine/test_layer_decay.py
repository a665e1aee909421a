"""SOLVER.LAYER_DECAY: hand-computed learning rates of ViTs, and which backbones have none."""

import pytest
from detectron2.modeling import build_model

from detr.engine.defaults import load_config
from detr.engine.solver import build_optimizer
from detr.errors import InputError
from tests.conftest import ROOT, as_opts
from tests.engine.test_backbones import CONFIGS, DATA, DETECTRON2_SWIN, DETECTRON2_VIT, TINY

pytest.importorskip("timm")
RATES = {"SOLVER.BASE_LR": 1e-3, "SOLVER.BACKBONE_MULTIPLIER": 0.5, "SOLVER.LAYER_DECAY": 0.1}


def rates(settings, config="vit_small"):
    """The learning rate of each trained parameter, by its name."""
    cfg = load_config(str(ROOT / "configs" / "backbones" / f"{config}.yaml"), as_opts({**TINY, **DATA, **settings}))
    model = build_model(cfg)
    of = {id(p): group["lr"] for group in build_optimizer(cfg, model).param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_rates_of_a_vit_of_timm():
    """Two blocks: 0.5e-3 times 0.1, 0.01, and 0.001 for what comes before them."""
    found = rates({**RATES, **CONFIGS["vit_small"]})
    for part, expected in {
        "patch_embed.proj.weight": 5e-7,
        "pos_embed": 5e-7,
        "blocks.0.attn.qkv.weight": 5e-6,
        "blocks.1.mlp.fc2.bias": 5e-5,
    }.items():
        assert found[f"backbone.body.model.{part}"] == pytest.approx(expected), part
    others = {name: rate for name, rate in found.items() if not name.startswith("backbone.")}
    assert set(others.values()) == {1e-3}


def test_rates_of_a_vit_of_detectron2():
    settings = {"MODEL.BACKBONE.NAME": "build_vit_backbone", "MODEL.BACKBONE.ARGUMENTS": DETECTRON2_VIT}
    for more, prefix in (({}, "backbone."), ({"MODEL.MASK_ON": True}, "backbone.net.")):  # a pyramid on it
        found = rates({**RATES, **settings, **more})
        for part, expected in {
            "patch_embed.proj.weight": 5e-7,
            "pos_embed": 5e-7,
            "blocks.0.attn.qkv.weight": 5e-6,
            "blocks.1.mlp.fc2.bias": 5e-5,
        }.items():
            assert found[prefix + part] == pytest.approx(expected), part
        assert found["query_embed.weight"] == 1e-3
    assert {rate for name, rate in found.items() if name.startswith("backbone.simfp")} == {5e-4}


def test_other_backbones_have_no_layers(tiny_config):
    for settings in ({}, {"MODEL.BACKBONE.NAME": "build_swin_backbone", "MODEL.BACKBONE.ARGUMENTS": DETECTRON2_SWIN}):
        cfg = tiny_config({**RATES, **settings})
        with pytest.raises(InputError, match=r"SOLVER\.LAYER_DECAY is 0\.1, but this backbone has no layers"):
            build_optimizer(cfg, build_model(cfg))


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_a_decay_that_cannot_be_is_one_line(decay, tiny_config):
    cfg = tiny_config({"SOLVER.LAYER_DECAY": decay})
    with pytest.raises(InputError, match="it must be above 0 and at most 1"):
        build_optimizer(cfg, build_model(cfg))
