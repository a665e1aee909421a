"""From float32 graphs to int8 ones or to weights of half the size, checked on images and measured."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from detectron2.config import CfgNode

from detr.errors import InputError
from detr.export import datasets
from detr.export.checking import AGREEMENT, CHECKED, check_agreement
from detr.export.half_weights import halve_weights
from detr.export.model import MASK_DECODER, NETWORK, Description, ExportedDetr
from detr.export.networks import random_batch
from detr.export.quantization import PACKAGES, Inputs, check_packages, quantize
from detr.export.reduction import Reduction
from detr.export.runtimes import SUFFIXES, Graph
from detr.modeling.mask_head import SharedMaps
from detr.modeling.meta_arch import Detr

DECODED = 8  # rows of an image that the mask decoder is calibrated with: those of the highest scores
SEEN = 4  # images that the graph is checked on: one alone, and a batch of the others


def check_reduction(cfg: CfgNode, reduction: Reduction, format: str) -> None:
    """Raises InputError for what cannot be done, before anything is."""
    reduction.check(format)
    if reduction.int8:
        check_packages(format)
        datasets.choose_images(cfg, reduction.calibration, reduction.images)
    if reduction.evaluate:
        datasets.check_evaluation(cfg, reduction.evaluate)


def reduce_graphs(
    folder: str,
    model: Detr,
    cfg: CfgNode,
    reduction: Reduction,
    description: Description,
    open_model: Callable[[], ExportedDetr],
) -> None:
    """Replaces the graphs in a folder, and changes their description.

    model: what was exported, in float32
    open_model: opens the folder as it is then

    Raises InputError where the new graphs do not do what the model does, or cost more than ``reduction.max_drop``.
    """

    def reopened() -> ExportedDetr:
        description.files = {name: os.path.getsize(os.path.join(folder, name)) for name in description.files}
        description.write(folder)
        return open_model()

    def measured() -> dict[str, float]:
        return datasets.measure(cfg, reopened(), reduction.evaluate) if reduction.evaluate else {}

    before = measured()
    paths = [
        os.path.join(folder, name + SUFFIXES[description.format])
        for name in (NETWORK, MASK_DECODER)
        if name == NETWORK or description.masks
    ]
    if reduction.int8:
        chosen = datasets.choose_images(cfg, reduction.calibration, reduction.images)
        load = datasets.image_loader(cfg, model)
        batches = [load(batch) for batch in (chosen[:1], chosen[1:SEEN]) if batch]
        _quantize(paths, chosen, load, cfg, reduction, description.format, before, reopened)
        description.calibration = {"dataset": reduction.calibration, "images": len(chosen)}
        description.versions |= {name: version(name) for name in PACKAGES[description.format]}
    else:
        generator = torch.Generator().manual_seed(1)
        batches = [random_batch(model, sizes, generator) for sizes in CHECKED]
        for path in paths:
            halve_weights(description.format, path, reduction.weights)
    description.dtype = reduction.dtype
    description.checked = check_agreement(reopened(), model, batches, AGREEMENT[reduction.dtype])
    if reduction.evaluate:
        after = measured()
        _check_drop(before, after, reduction)
        description.measured = {"dataset": reduction.evaluate, "float32": before, reduction.dtype: after}


def _quantize(
    paths: list[str],
    chosen: list[dict[str, Any]],
    load: datasets.Load,
    cfg: CfgNode,
    reduction: Reduction,
    format: str,
    before: dict[str, float],
    open_model: Callable[[], ExportedDetr],
) -> None:
    exact = open_model()  # its files are replaced below, but it has them open

    def score(graph: Graph | None = None) -> float:
        """The main metric of the folder as it is then, or with another network in it."""
        candidate = open_model()
        candidate.network = graph or candidate.network
        return next(iter(datasets.measure(cfg, candidate, reduction.evaluate).values()))

    def network_inputs(x: dict[str, Any]) -> Inputs:
        images = load([x])
        return images.tensor.numpy(), torch.tensor(images.image_sizes).numpy()

    def decoder_inputs(x: dict[str, Any]) -> Inputs:
        logits, _, *maps = exact.forward_network(load([x]))
        scores = logits[0].softmax(-1)[:, :-1].amax(-1)
        queries = scores.topk(min(DECODED, len(scores))).indices
        return tuple(x.numpy() for x in SharedMaps(*maps).rows(torch.zeros_like(queries), queries))

    controlled = reduction.max_drop is not None
    drop = reduction.max_drop or 0.0
    quantize(format, paths[0], chosen, network_inputs, score if controlled else None, drop)
    for path in paths[1:]:
        folder = os.path.dirname(path)
        with tempfile.TemporaryDirectory(dir=folder) as backup:
            names = [name for name in os.listdir(folder) if name.startswith(MASK_DECODER)]
            for name in names:
                shutil.copy(os.path.join(folder, name), backup)
            quantize(format, path, chosen, decoder_inputs)
            if controlled and next(iter(before.values())) - score() > drop:
                print("left in float: the mask decoder, which --max-drop does not allow in int8", file=sys.stderr)
                for name in names:
                    os.replace(os.path.join(backup, name), os.path.join(folder, name))


def _check_drop(before: dict[str, float], after: dict[str, float], reduction: Reduction) -> None:
    name = next(iter(before))
    drop = before[name] - after[name]
    if reduction.max_drop is not None and not drop <= reduction.max_drop:
        raise InputError(
            f"int8 costs {drop:.2f} points of {name} on {reduction.evaluate}, more than --max-drop "
            f"{reduction.max_drop:g}, even with layers back in float: allow more, calibrate with other images, or "
            "export in float32"
        )
