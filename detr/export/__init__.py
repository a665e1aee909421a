"""A trained ``Detr`` as ONNX, OpenVINO, TorchScript or torch.export, and back as a Detectron2 model.

report = export(cfg, "detr_onnx", "onnx")
model = load("detr_onnx")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Before the modules of this package, one of which is registered with Detectron2's models.
import detectron2.modeling  # noqa: F401

if TYPE_CHECKING:
    from detr.export.exporting import FORMATS, Report, export, get_config, load

__all__ = ["FORMATS", "Report", "export", "get_config", "load"]


def __getattr__(name: str) -> Any:
    """Imports the exporters only where they are used: to register "ExportedDetr" does not need them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.exporting"), name)
