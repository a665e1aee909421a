"""The written graphs against the model that they come from, at batches and sizes other than the example's."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor

from detr.errors import InputError
from detr.export.model import ExportedDetr
from detr.export.networks import random_batch
from detr.modeling.mask_head import ROWS_AT_ONCE, SharedMaps
from detr.modeling.meta_arch import Detr

# Two batches of (height, width): one image, and three that are all padded.
CHECKED = (((224, 160),), ((160, 288), (256, 192), (128, 128)))
TOLERANCE = 1e-3
# The least agreement of graphs that are not exact: int8, and weights of half the size.
AGREEMENT = {"int8": 0.5, "float16": 0.99, "bfloat16": 0.99}
MASKS_CHECKED = ROWS_AT_ONCE + 1  # more than are decoded at once, and a single one


@torch.no_grad()
def check(exported: ExportedDetr, model: Detr) -> list[dict[str, Any]]:
    """For each batch the images' sizes, and the largest difference of each output.

    Raises InputError where one is above ``TOLERANCE``, or where the graph does not run.
    """
    generator = torch.Generator().manual_seed(1)
    checked = []
    for sizes in CHECKED:
        try:
            found = differences(exported, model, sizes, generator)
        except Exception as error:  # each program raises its own kinds
            reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
            raise InputError(f"the exported graph does not run on {format_sizes(sizes)} ({reason})") from error
        for name, value in found.items():
            if not value <= TOLERANCE:
                raise InputError(
                    f"the exported graph is not the model: on {format_sizes(sizes)} its {name} differ by {value:.1e}, "
                    f"more than {TOLERANCE:g}"
                )
        checked.append({"images": [list(size) for size in sizes], "differences": found})
    return checked


def differences(
    exported: ExportedDetr, model: Detr, sizes: tuple[tuple[int, int], ...], generator: torch.Generator
) -> dict[str, float]:
    """The largest difference of each output on random images of these sizes (see ``difference``)."""
    pairs = _outputs(exported, model, random_batch(model, sizes, generator))
    return {name: difference(found, expected) for name, (found, expected) in pairs.items()}


def _outputs(exported: ExportedDetr, model: Detr, images: ImageList) -> dict[str, tuple[Tensor, Tensor]]:
    """Each output of the graphs and of the model: logits (N, Q, K + 1), boxes (N, Q, 4), mask logits (N, R, h, w)."""
    expected = model.forward_network(images, return_intermediate=False)
    logits, boxes, *maps = exported.forward_network(images)
    pairs = {"logits": (logits, expected.logits[-1]), "boxes": (boxes, expected.boxes[-1])}
    if model.mask_head is not None and expected.mask_features is not None:
        queries = torch.arange(min(MASKS_CHECKED, logits.shape[1]), device=model.device)
        indices = range(len(logits))
        rows = [exported.masks(SharedMaps(*maps), index, queries) for index in indices]
        head, features = model.mask_head, expected.mask_features
        expected_rows = [head(features, torch.full_like(queries, index), queries) for index in indices]
        pairs["mask logits"] = (torch.stack(rows), torch.stack(expected_rows))
    return pairs


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest |found - expected|, relative where |expected| is above 1. Raises ValueError for unlike shapes."""
    if found.shape != expected.shape:
        raise ValueError(f"the shape is {tuple(found.shape)}, not {tuple(expected.shape)}")
    return ((found - expected).abs() / expected.abs().clamp(min=1)).max().item()


@torch.no_grad()
def check_agreement(
    exported: ExportedDetr, model: Detr, batches: Sequence[ImageList], least: float
) -> list[dict[str, Any]]:
    """For a graph that is no longer exact: each batch's sizes, and the agreement of each output (see ``agreement``).

    Raises InputError where one is below ``least``, where an output has another shape or is not finite, and where the
    graph does not run.
    """
    checked = []
    for images in batches:
        sizes = tuple((int(h), int(w)) for h, w in images.image_sizes)
        try:
            pairs = _outputs(exported, model, images)
            found = {name: agreement(ours, expected) for name, (ours, expected) in pairs.items()}
        except Exception as error:  # each program raises its own kinds
            reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
            raise InputError(f"the exported graph does not run on {format_sizes(sizes)} ({reason})") from error
        for name, value in found.items():
            if not value >= least:
                raise InputError(
                    f"the exported graph lost too much: on {format_sizes(sizes)} its {name} agree with the model's by "
                    f"{value:.3f}, less than {least:g} of 1; calibrate with images like those that the model will see, "
                    "or export in float32"
                )
        checked.append({"images": [list(size) for size in sizes], "agreement": found})
    return checked


def agreement(found: Tensor, expected: Tensor) -> float:
    """1 for the same, about 0 for unrelated outputs (N, R, ...): the correlation of what differs from query to query.

    Means over images and queries are taken off, where there are several, since they are alike even where the graph
    sees nothing. Raises
    ValueError for unlike shapes and for values that are not finite.
    """
    difference(found, expected)  # of shapes
    if not found.isfinite().all():
        raise ValueError("some values are not finite")
    several = found.shape[0] * found.shape[1] > 1
    means = (x.mean((0, 1), keepdim=True) if several else 0 for x in (found, expected))
    ours, theirs = ((x - mean).flatten().double() for x, mean in zip((found, expected), means, strict=True))
    return torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item()


def format_sizes(sizes: tuple[tuple[int, int], ...]) -> str:
    return f"{len(sizes)} image{'s'[: len(sizes) > 1]} of {', '.join(f'{h} x {w}' for h, w in sizes)}"
