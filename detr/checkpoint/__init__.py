"""Checkpoints: the formats met in the wild, and the checkpointer that loads them."""

from detr.checkpoint import hub  # noqa: F401  registers torchvision:// and detr://
from detr.checkpoint.card import read_card, set_score_threshold
from detr.checkpoint.checkpointer import DetrCheckpointer

__all__ = ["DetrCheckpointer", "read_card", "set_score_threshold"]
