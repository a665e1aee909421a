"""A step of training, the memory that it takes, and matching with losses alone.

L  decoder layers, N images, Q queries, M objects of all images
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from benchmarks.contestants import original, our_config, transformers_parts
from benchmarks.timing import Result, Sample, Settings, race, require
from detr.checkpoint.rows import THINGS, coco_rows
from detr.engine.solver import build_optimizer
from detr.engine.training_step import TrainingStep
from detr.modeling.criterion import SetCriterion
from detr.modeling.matcher import HungarianMatcher, Targets
from tests.parity.oracle import build_original, load_oracle, original_checkpoint, original_targets
from tests.parity.pairs import converted

OBJECTS = 10  # an image, in a training step
LOSS_BOUND = 1e-3  # of the total loss, relative, without dropout
MIXED_LOSS_BOUND = 0.05  # the same in bfloat16, whose rounding lively random weights magnify
CHECKPOINTED = (("transformer",), ("backbone", "transformer"))  # what else a user may choose
SMALL_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}  # glibc then returns blocks of 4 MiB when they are freed
CLIP, RATE, BACKBONE_RATE, DECAY = 0.1, 1e-4, 1e-5, 1e-4  # the original's recipe
Step = Callable[[], Any]


def batch_size(settings: Settings) -> tuple[int, int, int]:
    """Images, height and width in pixels."""
    return (2, 192, 256) if settings.smoke else (2, 512, 640)


def training_targets(sizes: list[int], seed: int = 0) -> tuple[Targets, list[dict[str, Tensor]]]:
    """Objects for ours and for the original, whose labels are COCO ids; none reaches out of its image."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(sizes)
    labels = torch.randint(0, THINGS, (total,), generator=generator)
    extents = torch.rand(total, 2, generator=generator) * 0.4 + 0.02
    centers = extents / 2 + torch.rand(total, 2, generator=generator) * (1 - extents)
    boxes = torch.cat([centers, extents], dim=1)
    ids = coco_rows(THINGS)[labels].split(sizes)
    return Targets(labels, boxes, sizes), original_targets([x.tolist() for x in ids], list(boxes.split(sizes)))


class Batch:
    """Images of one size with objects, as each side's data loader hands them over."""

    def __init__(self, images: int, height: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (images, 3, height, width), generator=generator, dtype=torch.uint8)
        targets, self.theirs = training_targets([OBJECTS] * images)
        self.ours = []
        for image, target in zip(pixels, self.theirs, strict=True):
            instances = Instances((height, width))
            centers, extents = target["boxes"].split(2, dim=1)
            corners = torch.cat([centers - extents / 2, centers + extents / 2], dim=1)
            instances.gt_boxes = Boxes(corners * torch.tensor([width, height, width, height]))
            self.ours.append({"image": image, "instances": instances, "height": height, "width": width})
        for x, labels in zip(self.ours, targets.labels.split(targets.sizes), strict=True):
            x["instances"].gt_classes = labels
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.normalized = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
        self.nested = load_oracle().nested_tensor_from_tensor_list(list(self.normalized))


def training_step(settings: Settings) -> Result:
    return _training_step(settings)


def mixed_training_step(settings: Settings) -> Result:
    return _training_step(settings, dtype=torch.bfloat16)


def _training_step(settings: Settings, dtype: torch.dtype | None = None) -> Result:
    """Dropout makes every loss another one, so that the losses are compared before, without it.

    dtype: of products and convolutions in mixed precision; None for float32
    """
    batch = Batch(*batch_size(settings))
    name, height = "detr_R_50", batch_size(settings)[1]
    model, criterion, _ = original(name)
    theirs = _trainable(model)
    amp = () if dtype is None else ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", str(dtype).removeprefix("torch."))
    cfg = our_config(name, height, *amp)
    ours = converted(model, cfg)
    with mixed_precision(dtype):
        agreement = _compare_losses(ours, theirs, criterion, batch, LOSS_BOUND if dtype is None else MIXED_LOSS_BOUND)
    steps = {
        "ours": our_step(ours, cfg, batch, dtype),
        "original": original_step(theirs, criterion, batch, dtype),
    }
    if dtype is None:
        steps["transformers"] = _transformers_step(transformers_parts(name, height)[1], batch)
    with EventStorage():
        samples, _ = race(steps, settings.repeats, lambda outputs: "")
    return Result(samples, agreement=agreement)


def mixed_precision(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _trainable(model: Any) -> Any:
    """A copy that may be trained."""
    copy = build_original("detr_R_50")[0]
    copy.load_state_dict(original_checkpoint(model)["model"])
    return copy


def our_step(model: Any, cfg: Any, batch: Batch, dtype: torch.dtype | None = None) -> Step:
    return step_of_batches(model, cfg, [batch.ours], dtype)


def step_of_batches(model: Any, cfg: Any, batches: Sequence[Any], dtype: torch.dtype | None = None) -> Step:
    """Our trainer's loop: forward, loss, backward, clipping and AdamW, and its log of losses. Batches take turns."""
    trainer = TrainingStep(model.train(), itertools.cycle(batches), build_optimizer(cfg, model), dtype=dtype)
    trainer.iter = 0
    return trainer.run_step


def original_step(model: Any, criterion: Any, batch: Batch, dtype: torch.dtype | None = None) -> Step:
    """The same as the authors' loop does it: the loss is looked at before the step, for it may be infinite.

    dtype: of autocast around their forward pass and losses; None for float32
    """
    model.train()
    criterion.train()
    optimizer = _two_groups(model)

    def step() -> None:
        with mixed_precision(dtype):
            losses = criterion(model(batch.nested), batch.theirs)
            total = sum(losses[key] * weight for key, weight in criterion.weight_dict.items())
        if not torch.isfinite(total):
            raise FloatingPointError("the original has diverged")
        _descend(optimizer, total)

    return step


def _transformers_step(model: Any, batch: Batch) -> Step:
    model.config.auxiliary_loss = True
    optimizer = _two_groups(model.train())
    labels = [{"class_labels": x["labels"], "boxes": x["boxes"]} for x in batch.theirs]
    mask = (~batch.nested.mask).long()
    return lambda: _descend(optimizer, model(pixel_values=batch.normalized, pixel_mask=mask, labels=labels).loss)


def _two_groups(model: Any) -> torch.optim.Optimizer:
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    backbone = [parameter for name, parameter in trained if "backbone" in name]
    rest = [parameter for name, parameter in trained if "backbone" not in name]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": backbone, "lr": BACKBONE_RATE}]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=DECAY)


def _descend(optimizer: torch.optim.Optimizer, total: Tensor) -> None:
    optimizer.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], CLIP)
    optimizer.step()


@torch.no_grad()
def _compare_losses(ours: Any, theirs: Any, criterion: Any, batch: Batch, bound: float) -> str:
    outputs = ours.forward_network(ours.preprocess(batch.ours), return_intermediate=True)
    losses, _ = ours.criterion(outputs.logits, outputs.boxes, ours.targets(batch.ours, (0, 0)))
    expected = criterion(theirs(batch.nested), batch.theirs)
    total = sum(float(expected[key]) * weight for key, weight in criterion.weight_dict.items())
    found = sum(float(value) for value in losses.values())
    return require("ours", {"total loss": abs(found - total) / total}, {"total loss": bound})


def peak_memory(settings: Settings) -> Result:
    """A process of its own for each measurement, since a process never gives back all that it took."""
    values: dict[str, list[dict[str, float]]] = {"ours": [], "original": []}
    for _ in range(settings.repeats):
        for name, found in values.items():
            found.append(memory_of_step(name, settings))
    samples = {name: Sample(tuple(x["process"] for x in found)) for name, found in values.items()}
    tensors = ", ".join(f"{name} {found[0]['tensors']:.0f} MiB" for name, found in values.items())
    notes = [f"peak of tensors alone that one step adds, by torch's profiler: {tensors}"]
    few = range(min(settings.repeats, 3))
    for parts in CHECKPOINTED:
        key = ["MODEL.DETR.ACTIVATION_CHECKPOINT", str(parts)]
        taken = Sample(tuple(memory_of_step("ours", settings, key)["process"] for _ in few))
        share = taken.median / samples["original"].median
        notes.append(f"ours with MODEL.DETR.ACTIVATION_CHECKPOINT {parts}: {share:.2f} x original")
    for name in values:
        taken = Sample(tuple(memory_of_step(name, settings, environment=SMALL_HEAP)["process"] for _ in few))
        notes.append(f"{name} with {' '.join(map('='.join, SMALL_HEAP.items()))}: {taken.median:.0f} MiB")
    return Result(samples, unit="MiB", note="; ".join(notes))


def memory_of_step(
    side: str, settings: Settings, opts: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """See ``benchmarks.memory``; opts: config keys and values of ours; environment: variables to set."""
    numbers = map(str, (*batch_size(settings), settings.threads))
    command = [sys.executable, "-m", "benchmarks.memory", side, *numbers, *opts]
    here = {**os.environ, **(environment or {})}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the measurement of {side} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def losses(settings: Settings) -> Result:
    images, objects = (2, 3) if settings.smoke else (16, 7)
    ours, theirs = loss_contestants(images, objects, queries=100)
    samples, agreement = race({"ours": ours, "original": theirs}, settings.repeats, check_losses)
    return Result(samples, agreement=agreement)


def loss_contestants(images: int, objects: int, queries: int, layers: int = 6) -> tuple[Step, Step]:
    """Matching, losses and their gradients at the model's outputs; both compute the metrics too, as in training."""
    targets, their_targets = training_targets([objects] * images)
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(layers, images, queries, THINGS + 1, generator=generator)
    # The original has 92 classes; those that COCO has not never win.
    their_logits = torch.full((layers, images, queries, 92), -100.0)
    their_logits[..., coco_rows(THINGS)] = logits
    boxes = torch.rand(layers, images, queries, 4, generator=generator) * 0.5 + 0.2
    inputs = [x.requires_grad_() for x in (logits, boxes)]
    their_inputs = [x.requires_grad_() for x in (their_logits, boxes.detach().clone())]
    our_criterion, criterion = SetCriterion(matcher=HungarianMatcher(), num_classes=THINGS), original("detr_R_50")[1]

    def ours() -> Any:
        losses, matches = our_criterion(*inputs, targets)
        our_criterion.metrics(inputs[0].detach(), targets, matches)
        total = sum(losses.values())
        return total.detach(), *torch.autograd.grad(total, inputs)

    def theirs() -> Any:
        outputs = [{"pred_logits": x, "pred_boxes": y} for x, y in zip(*their_inputs, strict=True)]
        found = criterion({**outputs[-1], "aux_outputs": outputs[:-1]}, their_targets)
        total = sum(found[key] * weight for key, weight in criterion.weight_dict.items())
        return total.detach(), *torch.autograd.grad(total, their_inputs)

    return ours, theirs


def check_losses(outputs: dict[str, Any]) -> str:
    """Total losses, and gradients relative to their largest. Raises Disagreement."""
    names = ("total loss", "gradients of logits", "gradients of boxes")
    total, of_logits, of_boxes = outputs["original"]
    expected = (total, of_logits[..., coco_rows(THINGS)], of_boxes)
    apart = {
        name: float((x - y).abs().max() / y.abs().max())
        for name, x, y in zip(names, outputs["ours"], expected, strict=True)
    }
    return require("ours", apart, dict.fromkeys(names, 1e-4))
