"""Data: formats, transforms, the mappers, checks before training, and the embedded shapes."""

from detr.data.formats import register_any

__all__ = ["register_any"]
