"""DETR for Detectron2. Importing this registers the meta-architecture "Detr", its weights and the data set "shapes".

It takes no time: what is registered, and all else that the package has, is imported when it is used.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

if find_spec("detectron2") is None:
    raise ImportError(
        "detr needs Detectron2, which is not installed. In a clone of this project `make env` installs it; "
        "in an environment of your own with torch: "
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
    )

from detr.foreign_warnings import hide_foreign_warnings
from detr.lazy_imports import import_on_use
from detr.registration import register_on_import

if TYPE_CHECKING:
    from detr import model_zoo
    from detr.config import add_detr_config
    from detr.data import register_any
    from detr.inference.predictor import Predictor
    from detr.modeling.meta_arch import Detr

__all__ = ["Detr", "Predictor", "add_detr_config", "model_zoo", "register_any"]
__version__ = "0.1.0"

__getattr__ = import_on_use(
    __name__,
    {
        "Detr": "modeling.meta_arch",
        "Predictor": "inference.predictor",
        "add_detr_config": "config",
        "register_any": "data",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


hide_foreign_warnings()
register_on_import()
