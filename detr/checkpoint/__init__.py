"""Checkpoints: the formats met in the wild, and the checkpointer that loads them."""

from typing import TYPE_CHECKING

from detr.lazy_imports import import_on_use

if TYPE_CHECKING:
    from detr.checkpoint.card import read_card, set_score_threshold
    from detr.checkpoint.checkpointer import DetrCheckpointer

__all__ = ["DetrCheckpointer", "read_card", "set_score_threshold"]

# What reads files needs no models.
__getattr__ = import_on_use(
    __name__, {"DetrCheckpointer": "checkpointer", "read_card": "card", "set_score_threshold": "card"}
)
