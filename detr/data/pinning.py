"""Batches in pinned memory, from which a GPU copies while the host goes on."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor


class PinnableBatch(list[Any]):
    """A list of Detectron2's dicts. DataLoader's pinning knows dicts and tensors, but not the ``Instances`` in them."""

    def pin_memory(self) -> list[Any]:
        """A plain list; as DataLoader asks for it, in a thread of its own where there are workers."""
        return [{key: _pin(value) for key, value in x.items()} if isinstance(x, dict) else x for x in self]


def pinnable(collate: Callable[[list[Any]], Any], batch: list[Any]) -> Any:
    """What ``collate`` makes of the batch; a list so that it can be pinned."""
    collated = collate(batch)
    return PinnableBatch(collated) if type(collated) is list else collated


def _pin(value: Any) -> Any:
    """Other values, as polygons, stay where they are."""
    if isinstance(value, Tensor):
        return value.pin_memory() if value.device.type == "cpu" and value.layout == torch.strided else value
    if type(value) in (Boxes, BitMasks):
        return type(value)(value.tensor.pin_memory())
    if type(value) is Instances:
        return Instances(value.image_size, **{name: _pin(x) for name, x in value.get_fields().items()})
    return value
