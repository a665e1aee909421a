"""The original and ours with the same weights, side by side."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import Tensor, nn

from detr.checkpoint.formats import to_detectron2
from detr.checkpoint.rows import THINGS, coco_rows
from detr.engine.defaults import load_config
from detr.modeling.matcher import Targets
from detr.modeling.meta_arch import Detr
from tests.parity.oracle import lively_original, original_checkpoint, original_targets, sample_image

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MODELS = [
    "detr_R_50",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("detr_R_50_DC5", "detr_R_101", "detr_R_101_DC5")),
]
PADDED = [(256, 352), (320, 288)]  # (height, width): a batch in which both images are padded
SINGLE = [(299, 333)]


@dataclass
class Pair:
    original: nn.Module
    criterion: nn.Module
    ours: Detr


def config(name: str, *opts: Any, folder: str = "COCO-Detection") -> CfgNode:
    return load_config(str(CONFIGS / folder / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *map(str, opts)])


@functools.lru_cache(maxsize=1)  # one model at a time keeps the memory low
def make_pair(name: str, **options: Any) -> Pair:
    """Both in evaluation mode and double precision; tests share the weights and must not change them.

    Lively weights amplify rounding: in single precision the original itself is up to 1e-3 away from its own
    logits in double precision, and any rearrangement of a sum shows as much. In double precision what is
    left is the function.
    """
    original, criterion, _ = lively_original(name, **options)
    keys = {"position_embedding": "POSITION_EMBEDDING", "pre_norm": "PRE_NORM", "dropout": "DROPOUT"}
    opts = [text for key, value in options.items() for text in (f"MODEL.DETR.{keys[key]}", value)]
    return Pair(original.double(), criterion, converted(original, config(name, *opts)).double())


def converted(original: nn.Module, cfg: CfgNode) -> Detr:
    """In the original's precision. What is for training alone, the original does not have."""
    model = build_model(cfg).to(next(original.parameters()).dtype)
    found = model.load_state_dict(to_detectron2(original_checkpoint(original)["model"]).state, strict=False)
    assert not found.unexpected_keys
    assert all(key.startswith("training_queries.") for key in found.missing_keys)
    return model.eval()


def image_batch(sizes: list[tuple[int, int]], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Normalized images (3, H, W)."""
    return [sample_image(*size, seed=seed).to(dtype) for seed, size in enumerate(sizes)]


def run_ours(model: Detr, images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """logits (L, N, Q, K + 1) and boxes (L, N, Q, 4) of all decoder layers."""
    outputs = model.forward_network(ImageList.from_tensors(images), return_intermediate=True)
    return outputs.logits, outputs.boxes


def return_intermediate(outputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The original's outputs stacked as ours are, with the class rows that ours has."""
    layers = [*outputs["aux_outputs"], outputs]
    logits = torch.stack([layer["pred_logits"] for layer in layers])[..., coco_rows(THINGS)]
    return logits, torch.stack([layer["pred_boxes"] for layer in layers])


def random_targets(sizes: list[int], seed: int = 0) -> tuple[Targets, list[dict[str, Tensor]]]:
    """``sizes`` objects an image, for ours and for the original (whose labels are COCO ids)."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    labels = torch.randint(0, 80, (total,), generator=generator)
    centers = torch.rand(total, 2, generator=generator) * 0.6 + 0.2
    extents = torch.rand(total, 2, generator=generator) * 0.35 + 0.01
    boxes = torch.cat([centers, extents], dim=1)
    coco_ids = coco_rows(THINGS)[labels]
    theirs = original_targets([x.tolist() for x in coco_ids.split(sizes)], list(boxes.split(sizes)))
    return Targets(labels, boxes, sizes), theirs
