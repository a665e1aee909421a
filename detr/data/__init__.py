"""Data: formats, transforms, the mappers, checks before training, and the embedded shapes."""

# Before the modules of this package, one of which is registered with Detectron2's data sets.
import detectron2.data  # noqa: F401

from detr.data.formats import register_any

__all__ = ["register_any"]
