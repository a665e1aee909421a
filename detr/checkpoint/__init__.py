"""Checkpoints: the formats met in the wild, and the checkpointer that loads them."""

from detr.checkpoint.checkpointer import DetrCheckpointer

__all__ = ["DetrCheckpointer"]
