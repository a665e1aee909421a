"""Models whose training steps and predictions are watched on a GPU, make-believe or real, and where they may wait."""

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from detr.engine.defaults import load_config
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts, make_input, with_masks
from tests.modeling.training_parts import PARTS

BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0]]
SIZES = [(96, 128), (90, 101)]  # the second image is padded
QUICKSTART_PANOPTIC = QUICKSTART.with_name("shapes_panoptic.yaml")
R50_DC5 = ROOT / "configs" / "COCO-Detection" / "detr_R_50_DC5.yaml"
MASKS = {"MODEL.MASK_ON": True}

CASES: dict[str, tuple[Path, dict[str, Any]]] = {
    "boxes": (QUICKSTART, {}),
    "masks on a frozen box model": (QUICKSTART, {**MASKS, "MODEL.DETR.FREEZE_DETR": True}),
    "masks, recomputed": (
        QUICKSTART,
        {
            **MASKS,
            "MODEL.RESNETS.NORM": "FrozenBN",
            "MODEL.DETR.ACTIVATION_CHECKPOINT": ("backbone", "transformer", "mask_head"),
        },
    ),
    "masks and queries for training": (QUICKSTART, {**MASKS, **PARTS["all"]}),
    "panoptic": (QUICKSTART_PANOPTIC, {}),
    "DC5, a limit, learned positions, pre-norm": (
        R50_DC5,
        {
            "MODEL.WEIGHTS": "",
            "TEST.DETECTIONS_PER_IMAGE": 10,
            "MODEL.DETR.POSITION_EMBEDDING": "learned",
            "MODEL.DETR.PRE_NORM": True,
        },
    ),
}
# A step brings the matching cost to the host, and the metrics where there is an event storage.
TRAINING = ["matcher.py: forward", "meta_arch.py: losses"]
# Inference brings nothing, unless the number of instances or segments depends on the scores.
CHOICE = "postprocessing.py: _choose"
PANOPTIC = {
    CHOICE,  # stuff is no instance
    "panoptic.py: panoptic_queries",
    "postprocessing.py: forward",  # which masks are wanted
    "panoptic.py: panoptic_segmentation",  # which segments are large enough, round after round
    "panoptic.py: _segments_info",
}
INFERENCE = {"panoptic": PANOPTIC, "DC5, a limit, learned positions, pre-norm": {CHOICE}}


def build(name: str) -> tuple[CfgNode, nn.Module]:
    """On the CPU."""
    config, settings = CASES[name]
    cfg = load_config(str(config), as_opts({**TINY, "MODEL.DEVICE": "cpu", **settings}))
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def batch() -> list[dict[str, Any]]:
    """Two images of two sizes with two objects and one."""
    return [
        with_masks(make_input(BOXES[:count], [1, 3][:count], size, seed))
        for seed, (count, size) in enumerate(zip((2, 1), SIZES, strict=True))
    ]


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batched_inputs: list[dict[str, Any]]) -> None:
    """Forward, matching, losses, backward, clipping and the optimizer."""
    optimizer.zero_grad()
    sum(model(batched_inputs).values()).backward()
    optimizer.step()
