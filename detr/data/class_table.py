"""How many objects of each class a data set has, and how large they are, as a table to read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from detr.data.annotations import decide, flatten

LONGEST = 25  # rows


def class_table(parts: Mapping[str, Sequence[dict[str, Any]]], names: Sequence[str]) -> str:
    """A row a class: objects and images with one in each part, and the objects' median size in the first.

    parts: name -> dicts of boxes, as ``load_dataset`` returns them; names: of the K classes
    The size is the root of a box's area, in pixels of the image file. Of many classes the rarest share the last row.
    """
    counts = {part: _count(dicts, len(names)) for part, dicts in parts.items()}
    sizes = _median_sizes(next(iter(parts.values())), len(names))
    first = next(iter(counts.values()))[0]
    order = np.argsort(-first, kind="stable") if len(names) > LONGEST else np.arange(len(names))
    shown, rest = order[: LONGEST - 1], order[LONGEST - 1 :]
    if len(names) <= LONGEST:
        shown, rest = order, order[:0]
    rows = []
    for index in shown:
        numbers = [int(number[index]) for count in counts.values() for number in count]
        rows.append([names[index], *numbers, None if np.isnan(sizes[index]) else f"{sizes[index]:.0f}"])
    if len(rest):
        objects = [x for number, _ in counts.values() for x in (int(number[rest].sum()), None)]
        rows.append([f"{len(rest)} more classes", *objects, None])
    headers = [f"{what}\n{part}" for part in parts for what in ("objects", "images")]
    return str(tabulate(rows, headers=["class", *headers, "median\nsize"]))


def _count(dicts: Sequence[dict[str, Any]], num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each class the objects, and the images with one: (K,) int64 each."""
    labels, image, _ = _objects(dicts)
    pairs = np.unique(np.stack([image, labels], axis=1), axis=0)
    return tuple(np.bincount(x, minlength=num_classes) for x in (labels, pairs[:, 1]))  # type: ignore[return-value]


def _median_sizes(dicts: Sequence[dict[str, Any]], num_classes: int) -> np.ndarray:
    labels, _, sizes = _objects(dicts)
    return np.array([np.median(sizes[labels == i]) if (labels == i).any() else np.nan for i in range(num_classes)])


def _objects(dicts: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the M objects: labels (M,) int, the numbers of their images (M,) int, sizes (M,) in pixels."""
    flat, image, height, width = flatten(dicts)
    fates = decide(flat, height, width)
    labels = np.array([obj["category_id"] for obj in flat], dtype=int)[fates.objects]
    sides = (fates.boxes[:, 2:] - fates.boxes[:, :2])[fates.objects]
    return labels, image[fates.objects], np.sqrt(sides.prod(axis=1))
