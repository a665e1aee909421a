"""Checkpoints: the formats met in the wild, and the checkpointer that loads them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detr.checkpoint.card import read_card, set_score_threshold
    from detr.checkpoint.checkpointer import DetrCheckpointer

__all__ = ["DetrCheckpointer", "read_card", "set_score_threshold"]


def __getattr__(name: str) -> Any:
    """Imports the checkpointer, and Detectron2's models with it, only where it is used: files need none of them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "checkpointer" if name == "DetrCheckpointer" else "card"
    return getattr(import_module(f"{__name__}.{module}"), name)
