"""A trained ``Detr`` as ONNX, OpenVINO, TorchScript or torch.export, and back as a Detectron2 model.

report = export(cfg, "detr_onnx", "onnx")
model = load("detr_onnx")
"""

from typing import TYPE_CHECKING

# Before the modules of this package, one of which is registered with Detectron2's models.
import detectron2.modeling  # noqa: F401

from detr.lazy_imports import import_on_use

if TYPE_CHECKING:
    from detr.export.exporting import FORMATS, Reduction, Report, export, get_config, load

__all__ = ["FORMATS", "Reduction", "Report", "export", "get_config", "load"]

# What registers "ExportedDetr" needs no exporters.
__getattr__ = import_on_use(__name__, dict.fromkeys(__all__, "exporting"))
