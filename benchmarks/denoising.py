"""What anchors and denoising cost: a training step with them against one without, of the same model."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from benchmarks.learning import ANCHORS, CONFIG, DENOISING, PLAIN
from benchmarks.timing import Result, Settings, race, require
from benchmarks.training import Batch, batch_size, memory_of_step, step_of_batches
from detr.data.shapes import ensure_shapes
from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer
from tests.parity.pairs import CONFIGS

BATCHES = 16  # of the quickstart, whose images have 1 to 7 objects
WITH = {**PLAIN, **ANCHORS, **DENOISING}
MODELS: dict[str, dict[str, object]] = {"ours": WITH, "without": PLAIN}


def r50(settings: Settings) -> Result:
    images, height, width = batch_size(settings)
    cfgs = {who: _config(str(CONFIGS / "COCO-Detection" / "detr_R_50.yaml"), keys) for who, keys in MODELS.items()}
    result = _race(cfgs, [Batch(images, height, width).ours], settings)
    options = [str(x) for pair in (ANCHORS | DENOISING).items() for x in pair]
    with_them, without = (memory_of_step("ours", settings, opts)["process"] for opts in (options, []))
    note = f"peak memory {with_them:.0f} MiB, {with_them / without:.2f} x that without"
    return Result(result.samples, agreement=result.agreement, note=note)


def quickstart(settings: Settings) -> Result:
    ensure_shapes()
    cfgs = {who: _config(str(CONFIG), keys) for who, keys in MODELS.items()}
    count = 1 if settings.smoke else BATCHES
    batches = itertools.islice(Trainer.build_train_loader(cfgs["ours"]), count)
    return _race(cfgs, list(batches), settings, turn=count)


def _config(path: str, keys: dict[str, object]) -> CfgNode:
    return load_config(path, ["MODEL.DEVICE", "cpu", *(str(x) for pair in keys.items() for x in pair)])


def _race(cfgs: dict[str, CfgNode], batches: Sequence[Any], settings: Settings, turn: int = 1) -> Result:
    """turn: steps that are timed together"""
    models = {who: build_model(cfg) for who, cfg in cfgs.items()}
    models["ours"].load_state_dict(models["without"].state_dict(), strict=False)
    agreement = _compare(models, batches[0])
    steps = {who: step_of_batches(model, cfgs[who], batches) for who, model in models.items()}
    with EventStorage():
        work = {who: lambda step=step: [step() for _ in range(turn)] for who, step in steps.items()}
        samples, _ = race(work, settings.repeats, lambda outputs: "")
    return Result(samples, agreement=agreement)


@torch.no_grad()
def _compare(models: dict[str, Any], batch: Any) -> str:
    """The object queries see nothing of the denoising queries beside them."""
    ours, without = (models[who].eval() for who in ("ours", "without"))
    images = ours.preprocess(batch)
    queries = ours.training_queries(ours.query_embed.weight, ours.targets(batch, (0, 0)))
    found, expected = ours.forward_network(images, True, queries), without.forward_network(images, True)
    apart = {"logits": found.logits - expected.logits, "boxes": found.boxes - expected.boxes}
    return require("ours", {name: float(x.abs().max()) for name, x in apart.items()}, {"logits": 1e-3, "boxes": 1e-4})
