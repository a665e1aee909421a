"""The written graphs against the model that they come from, at batches and sizes other than the example's."""

from typing import Any

import torch
from torch import Tensor

from detr.errors import InputError
from detr.export.model import ExportedDetr
from detr.export.networks import random_batch
from detr.modeling.mask_head import ROWS_AT_ONCE, SharedMaps
from detr.modeling.meta_arch import Detr

# Two batches of (height, width): one image, and three that are all padded.
CHECKED = (((224, 160),), ((160, 288), (256, 192), (128, 128)))
TOLERANCE = 1e-3
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
    images = random_batch(model, sizes, generator)
    expected = model.forward_network(images, return_intermediate=False)
    logits, boxes, *maps = exported.forward_network(images)
    found = {"logits": difference(logits, expected.logits[-1]), "boxes": difference(boxes, expected.boxes[-1])}
    if model.mask_head is not None and expected.mask_features is not None:
        queries = torch.arange(min(MASKS_CHECKED, logits.shape[1]), device=model.device)
        masks = []
        for index in range(len(sizes)):
            rows = exported.masks(SharedMaps(*maps), index, queries)
            expected_rows = model.mask_head(expected.mask_features, torch.full_like(queries, index), queries)
            masks.append(difference(rows, expected_rows))
        found["mask logits"] = max(masks)
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest |found - expected|, relative where |expected| is above 1. Raises ValueError for unlike shapes."""
    if found.shape != expected.shape:
        raise ValueError(f"the shape is {tuple(found.shape)}, not {tuple(expected.shape)}")
    return ((found - expected).abs() / expected.abs().clamp(min=1)).max().item()


def format_sizes(sizes: tuple[tuple[int, int], ...]) -> str:
    return f"{len(sizes)} image{'s'[: len(sizes) > 1]} of {', '.join(f'{h} x {w}' for h, w in sizes)}"
