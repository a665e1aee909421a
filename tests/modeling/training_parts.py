"""A tiny Detr with what is for training alone, and the plain Detr that computes the same."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from detr.checkpoint.rows import TRAINING_PREFIX
from detr.modeling.meta_arch import Detr
from detr.modeling.outputs import Outputs
from tests.conftest import make_input, with_masks
from tests.lively import enliven

BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0], [5.0, 30.0, 90.0, 90.0]]
SIZES = [(96, 128), (90, 101)]  # the second image is padded
OBJECTS = [(3, 1), (0, 2), (0, 0)]  # of the two images

PARTS: dict[str, dict[str, Any]] = {
    "denoising": {"MODEL.DETR.DENOISING.ENABLED": True},
    "groups": {"MODEL.DETR.QUERY_GROUPS": 3},
    "anchors": {"MODEL.DETR.ANCHOR_QUERIES": True},
}
PARTS["all"] = {key: value for part in tuple(PARTS.values()) for key, value in part.items()}
OFF = {"MODEL.DETR.DENOISING.ENABLED": False, "MODEL.DETR.QUERY_GROUPS": 1, "MODEL.DETR.ANCHOR_QUERIES": False}
NO_NOISE = {
    "MODEL.DETR.DENOISING.BOX_NOISE": 0.0,
    "MODEL.DETR.DENOISING.LABEL_NOISE": 0.0,
    "MODEL.DETR.DENOISING.NEGATIVES": False,
}


def build_pair(tiny_config: Callable[..., CfgNode], settings: dict[str, Any]) -> tuple[Detr, Detr]:
    """A plain, lively Detr, and one with these settings that starts from its weights; both in training mode."""
    torch.manual_seed(0)
    plain = enliven(build_model(tiny_config({**settings, **OFF})))
    model = build_model(tiny_config(settings))
    model.load_state_dict(plain.state_dict(), strict=False)
    return plain.train(), model.train()


def make_batch(objects: tuple[int, ...] = (3, 1), masks: bool = False) -> list[dict[str, Any]]:
    inputs = [
        make_input(BOXES[:count], [1, 3, 0][:count], size, seed)
        for seed, (count, size) in enumerate(zip(objects, SIZES, strict=True))
    ]
    return [with_masks(x) for x in inputs] if masks else inputs


def training_outputs(model: Detr, inputs: list[dict[str, Any]], **changes: Any) -> Outputs:
    """Those of all layers, with the queries of a training step; the fields of these may be changed."""
    images = model.preprocess(inputs)
    targets = model.targets(inputs, tuple(images.tensor.shape[-2:]))
    if model.training_queries is None:
        return model.forward_network(images, True)
    queries = model.training_queries(model.query_embed.weight, targets)
    for name, change in changes.items():
        setattr(queries, name, change(queries))
    return model.forward_network(images, True, queries)


def step(model: Detr, inputs: list[dict[str, Any]], seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients."""
    torch.manual_seed(seed)
    model.zero_grad()
    losses = model(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def plain_state(model: Detr) -> dict[str, Tensor]:
    """What is saved of a training for a plain Detr."""
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith(TRAINING_PREFIX)}
