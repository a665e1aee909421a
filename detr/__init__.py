"""DETR for Detectron2. Importing this registers the meta-architecture "Detr", its weights and the data set "shapes"."""

import warnings

try:
    import detectron2
except ModuleNotFoundError as error:
    if error.name != "detectron2":  # Detectron2 is there, and something that it needs is not
        raise
    raise ImportError(
        "detr needs Detectron2, which is not installed. In a clone of this project `make env` installs it; "
        "in an environment of your own with torch: "
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
    ) from None

with warnings.catch_warnings():
    # fvcore and Detectron2 script small functions when they are imported, which torch has come to warn of.
    warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
    import detectron2.modeling  # noqa: F401

from detr import model_zoo
from detr.checkpoint.checkpointer import serve_detectron2
from detr.config import add_detr_config
from detr.data import register_any
from detr.data.shapes import register_shapes
from detr.export import model as _exported  # noqa: F401  registers the meta-architecture "ExportedDetr"
from detr.foreign_warnings import hide_foreign_warnings
from detr.inference.predictor import Predictor
from detr.modeling import detectron2_backbones, small_resnet, timm_backbone  # noqa: F401  they register backbones
from detr.modeling.meta_arch import Detr

__all__ = ["Detr", "Predictor", "add_detr_config", "model_zoo", "register_any"]
__version__ = "0.1.0"

hide_foreign_warnings()
register_shapes()
serve_detectron2()
