"""From the masks of queries to one panoptic map of an image, in Detectron2's form.

Q  queries
R  queries that take part in the map
K  classes without no-object: things, and stuff, of which each class has one segment
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MASKS_AT_ONCE_ON_GPU = 8  # a COCO image's mask logits at the input's size are 4 MB in float32
PIXELS_AT_ONCE = 2**20  # on a CPU, whose caches hold no more; besides, its allocator asks the system for larger blocks
PIXEL_ROWS_AT_ONCE = 64  # of an image, when its pixels are assigned to queries
NEAR = 1e-6  # softmax may round two logits to one value only where they are this near


def panoptic_queries(logits: Tensor, score_threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The queries that take part: their best class is not no-object, and its score is above the threshold.

    logits: (Q, K + 1), the last column no-object
    score_threshold: in [0, 1]; a score equal to it is not enough

    Returns the queries in ascending order, their classes in [0, K) and their scores in [0, 1]: (R,) each.
    """
    scores, labels = logits.float().softmax(-1).max(-1)
    queries = ((labels != logits.shape[-1] - 1) & (scores > score_threshold)).nonzero()[:, 0]
    return queries, labels[queries], scores[queries]


def panoptic_segmentation(
    mask_logits: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    size: tuple[int, int],
    is_thing: Tensor,
    min_area: int,
    stuff_merge: str,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The panoptic map of one image: each pixel goes to the query with the highest mask logit there.

    mask_logits: (R, h, w), over the padded input
    labels, scores: (R,) classes in [0, K), scores in [0, 1], as from ``panoptic_queries``
    padded_size, image_size: (height, width) in pixels of the model's input with padding, and without
    size: (height, width) of the map in pixels
    is_thing: (K,) bool, False = stuff
    min_area: in pixels of the map, at least 0. Segments that are not larger are dropped and their pixels go
        to the queries that are left, again and again until none is to be dropped
    stuff_merge: "original": the stuff of a class is merged the first time only, into its first query. Its
        other queries count as dropped, so their pixels go to whichever query comes next there, be it of
        another class: that is how the published panoptic quality was reached. "exact": stuff is merged
        every time, and pixels leave no segment but a dropped one

    All tensors are on one device. Returns the map, (height, width) int32 with ids 1, 2, ..., and its segments
    in the order of the ids: "id", "category_id" in [0, K), "isthing", "score" of the segment's first query,
    "area" in pixels of the map. Where no segment is left, the map is 0 = void: for COCO's panoptic quality
    the image then has missed segments but no wrong ones.
    """
    device = mask_logits.device
    rows, row_of = (x.to(device, non_blocking=True) for x in _nearest(image_size[0], size[0]))
    columns, column_of = (x.to(device, non_blocking=True) for x in _nearest(image_size[1], size[1]))
    logits = _upsampled(mask_logits, padded_size, rows, columns)
    kept, merge = torch.arange(len(labels), device=device), True
    while len(kept):
        # From here on a query is its position in kept, and a segment the first of its queries.
        itself = torch.arange(len(kept), device=device)
        first = _first_of_segment(labels[kept], is_thing) if merge else itself
        segments = first[_best(logits, kept)]
        if segments.shape != size:  # else every pixel shows once
            segments = segments[row_of][:, column_of]  # (height, width)
        areas = _count(segments, len(kept))
        merge = stuff_merge == "exact"
        large = ((areas[first] if merge else areas) > min_area).nonzero()[:, 0]
        if len(large) == len(kept):
            ids = (first == itself).cumsum(0, dtype=torch.int32)  # only read at first queries
            firsts = first.unique()
            queries = kept[firsts]
            return ids[segments], _segments_info(labels[queries], scores[queries], areas[firsts], is_thing)
        kept = kept[large]
    return torch.zeros(size, dtype=torch.int32, device=device), []


def _nearest(length: int, size: int) -> tuple[Tensor, Tensor]:
    """How PIL resizes ``length`` pixels to ``size`` without blending; torch's "nearest-exact" rounds differently.

    Returns the pixels that show, ascending and each once, and (size,) which of these each new pixel shows.
    """
    pixels = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    shown = np.array(pixels.resize((size, 1), Image.Resampling.NEAREST))[0]
    unique, inverse = np.unique(shown, return_inverse=True)
    return torch.from_numpy(unique).long(), torch.from_numpy(inverse).long()


def _upsampled(mask_logits: Tensor, padded_size: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """Logits at some pixels of the input.

    mask_logits: (R, h, w), over the padded input
    rows, columns: (H',), (W',) pixels of the input; that none is in the padding cuts it off

    Returns (R, H', W') float32.
    """
    logits = torch.empty(len(mask_logits), len(rows), len(columns), dtype=torch.float32, device=mask_logits.device)
    at_once = masks_at_once(mask_logits.device, padded_size)
    for chunk, part in zip(mask_logits.split(at_once), logits.split(at_once), strict=True):
        x = F.interpolate(chunk[:, None].float(), size=padded_size, mode="bilinear", align_corners=False)
        part.copy_(_chosen(_chosen(x[:, 0], 1, rows), 2, columns))
    return logits


def masks_at_once(device: torch.device, size: tuple[int, int]) -> int:
    """How many masks of (height, width) pixels to upsample together."""
    return max(PIXELS_AT_ONCE // (size[0] * size[1]), 1) if device.type == "cpu" else MASKS_AT_ONCE_ON_GPU


def _chosen(x: Tensor, dim: int, indices: Tensor) -> Tensor:
    """x.index_select(dim, indices), for ascending ``indices`` that occur once each."""
    if len(indices) == x.shape[dim]:  # then they are all
        return x
    return x.index_select(dim, indices)


def _best(logits: Tensor, kept: Tensor) -> Tensor:
    """logits: (R, H', W'). Returns (H', W') positions in ``kept``, which holds some of the R queries, ascending."""
    assign = _assign_on_cpu if logits.device.type == "cpu" else _assign
    return torch.cat([assign(_chosen(part, 0, kept)) for part in logits.split(PIXEL_ROWS_AT_ONCE, dim=1)])


def _assign(logits: Tensor) -> Tensor:
    """(R, ...) -> (...), the best query of each pixel."""
    # Softmax changes no order, but it rounds: of near-equal logits the first query wins, as in the original.
    return logits.movedim(0, -1).softmax(-1).argmax(-1)


def _assign_on_cpu(logits: Tensor) -> Tensor:
    """The same in a third of the time: softmax is computed only where rounding may decide."""
    highest, best = logits.max(0)
    undecided = (logits >= highest - NEAR).sum(0, dtype=torch.int32) != 1
    best[undecided] = _assign(logits[:, undecided])
    return best


def _first_of_segment(labels: Tensor, is_thing: Tensor) -> Tensor:
    """(R,): for each query the first one of its segment, which is itself but for stuff."""
    same = (labels[:, None] == labels) & ~is_thing[labels]
    same.fill_diagonal_(True)
    return same.int().argmax(1)


def _count(segments: Tensor, num_segments: int) -> Tensor:
    """How often 0, ..., num_segments - 1 occur. Unlike bincount, without waiting for a GPU."""
    flat = segments.flatten()
    return flat.new_zeros(num_segments).scatter_add_(0, flat, torch.ones_like(flat))


def _segments_info(labels: Tensor, scores: Tensor, areas: Tensor, is_thing: Tensor) -> list[dict[str, Any]]:
    """One dict a segment, of Python's own numbers: Detectron2's evaluator asks ``isthing is True``."""
    numbers = torch.stack([labels, is_thing[labels].long(), areas], dim=1).tolist()
    return [
        {"id": i, "category_id": label, "isthing": bool(thing), "score": score, "area": area}
        for i, ((label, thing, area), score) in enumerate(zip(numbers, scores.tolist(), strict=True), start=1)
    ]
