"""Every family of backbones trains one step and is evaluated, in a tiny version, from its config where it has one."""

import math
import re

import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.utils.events import EventStorage

from detr.engine.defaults import load_config
from detr.engine.solver import build_optimizer
from detr.engine.trainer import Trainer
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts

DATA = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.DETR.NUM_CLASSES": 4,
    "MODEL.DETR.NUM_OBJECT_QUERIES": 10,
    "MODEL.TIMM.PRETRAINED": False,
    "DATASETS.TRAIN": ("shapes_train",),
    "DATASETS.TEST": ("shapes_val",),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "INPUT.MIN_SIZE_TRAIN": (90, 100),  # no multiples of a stride
    "INPUT.MIN_SIZE_TEST": 100,
    "INPUT.CROP.ENABLED": False,
}
DETECTRON2_VIT = (("img_size", 64), ("embed_dim", 32), ("depth", 2), ("num_heads", 2), ("window_size", 3),
                  ("window_block_indexes", [0]))  # fmt: skip
DETECTRON2_REGNET = (("depth", 4), ("w_a", 16.0), ("w_0", 16), ("w_m", 1.7), ("group_width", 8))
DETECTRON2_SWIN = (("embed_dim", 16), ("depths", [1, 1, 1, 1]), ("num_heads", [1, 2, 4, 8]))
# Name -> what makes the config's backbone tiny.
CONFIGS = {
    "fpn_R_50": {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.FPN.OUT_CHANNELS": 32},
    "regnety_040": {
        "MODEL.TIMM.NAME": "regnety_002",
        "MODEL.TIMM.NORM": "BN",
        "MODEL.BACKBONE.ARGUMENTS": (("zero_init_last", False),),  # else most of a block has no gradient at first
    },
    "convnext_tiny": {"MODEL.BACKBONE.ARGUMENTS": (("depths", [1, 1, 1, 1]), ("dims", [8, 16, 24, 32]))},
    "swin_tiny": {"MODEL.BACKBONE.ARGUMENTS": DETECTRON2_SWIN},  # timm's arguments have the same names
    "vit_small": {"MODEL.BACKBONE.ARGUMENTS": (("embed_dim", 32), ("depth", 2), ("num_heads", 2))},
    "mvitv2_tiny": {
        "MODEL.BACKBONE.ARGUMENTS": (
            ("img_size", 64),
            ("embed_dim", 8),
            ("depth", 4),
            ("last_block_indexes", [0, 1, 2, 3]),
        )
    },
    "regnetx_4gf": {"MODEL.BACKBONE.ARGUMENTS": DETECTRON2_REGNET},
    "vit_base": {"MODEL.BACKBONE.ARGUMENTS": DETECTRON2_VIT},
}
BUILDERS = {"swin": DETECTRON2_SWIN}  # of Detectron2, without a config
PYRAMIDS = {
    "configs/backbones/fpn_R_50.yaml": CONFIGS["fpn_R_50"],
    "configs/backbones/convnext_tiny.yaml": CONFIGS["convnext_tiny"],
    "configs/backbones/swin_tiny.yaml": CONFIGS["swin_tiny"],
    "configs/backbones/mvitv2_tiny.yaml": CONFIGS["mvitv2_tiny"],
    "configs/backbones/regnetx_4gf.yaml": CONFIGS["regnetx_4gf"],
    "configs/backbones/vit_base.yaml": CONFIGS["vit_base"],
    **{f"build_{name}_backbone": {"MODEL.BACKBONE.ARGUMENTS": arguments} for name, arguments in BUILDERS.items()},
}


def make_config(which, settings, folder):
    """which: a config file, or a builder's name with the quickstart's config."""
    if which.endswith(".yaml"):
        return load_config(str(ROOT / which), as_opts({**TINY, **DATA, **settings, "OUTPUT_DIR": folder}))
    builder = {"MODEL.BACKBONE.NAME": which, "MODEL.BACKBONE.FREEZE_AT": 0}
    return load_config(str(QUICKSTART), as_opts({**TINY, **DATA, **builder, **settings, "OUTPUT_DIR": folder}))


def train_one_step(cfg):
    """The model after a step, in which the trained parameters of the backbone have moved, and no others of it."""
    model = build_model(cfg).train()
    before = {name: x.detach().clone() for name, x in model.backbone.named_parameters()}
    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        losses = model(next(iter(Trainer.build_train_loader(cfg))))
        sum(losses.values()).backward()
    optimizer.step()
    trained = {name for name, x in model.backbone.named_parameters() if x.requires_grad}
    moved = {name for name, x in model.backbone.named_parameters() if not torch.equal(x, before[name])}
    # Distributed training waits for the gradient of each.
    assert all(x.grad is not None for x in model.parameters() if x.requires_grad)
    assert moved <= trained
    assert len(moved) > len(trained) / 2  # behind a layer scale of 1e-6, a step is too small for float32
    return model


def test_a_backbone_of_ones_own_is_built_as_the_page_says(tiny_config):
    page = (ROOT / "docs" / "backbones.md").read_text()
    exec(re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1], {"__name__": "docs"})
    model = build_model(tiny_config({"MODEL.BACKBONE.NAME": "Patches"})).eval()
    images = model.preprocess([{"image": torch.zeros(3, 50, 70, dtype=torch.uint8)}])
    assert images.tensor.shape[-2:] == (64, 80)
    assert model.forward_network(images, return_intermediate=False).boxes.isfinite().all()
    BACKBONE_REGISTRY._obj_map.pop("Patches")


def test_every_config_of_a_backbone_is_tested():
    assert {path.stem for path in (ROOT / "configs" / "backbones").glob("*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize("which", [*(f"configs/backbones/{name}.yaml" for name in CONFIGS),
                                   *(f"build_{name}_backbone" for name in BUILDERS)])  # fmt: skip
def test_a_backbone_trains_one_step_and_is_evaluated(which, tmp_path, shapes_root):
    settings = CONFIGS[which.split("/")[-1].removesuffix(".yaml")] if "/" in which else {
        "MODEL.BACKBONE.ARGUMENTS": BUILDERS[which.removeprefix("build_").removesuffix("_backbone")]
    }  # fmt: skip
    cfg = make_config(which, settings, tmp_path)
    model = train_one_step(cfg)
    results = Trainer.test(cfg, model)
    assert 0 <= results["bbox"]["AP"] <= 100


@pytest.mark.parametrize("which", PYRAMIDS)
def test_masks_come_out_at_stride_4(which, tmp_path, shapes_root):
    cfg = make_config(which, {**PYRAMIDS[which], "MODEL.MASK_ON": True, "MODEL.DETR.FREEZE_DETR": True}, tmp_path)
    model = build_model(cfg).eval()
    images = model.preprocess([{"image": torch.zeros(3, 100, 90, dtype=torch.uint8)}])
    height, width = images.tensor.shape[-2:]
    with torch.no_grad():
        features = model.forward_network(images, return_intermediate=False).mask_features
    expected = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in (16, 8, 4)]
    assert [tuple(x.shape[-2:]) for x in features.pyramid] == expected
