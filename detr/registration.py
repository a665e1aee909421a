"""Registers DETR with Detectron2: each part when Detectron2's own is imported, which takes seconds, and not before."""

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_models() -> None:
    """The meta-architectures "Detr" and "ExportedDetr", and the backbones."""
    import detr.export.model
    import detr.modeling.detectron2_backbones
    import detr.modeling.meta_arch
    import detr.modeling.small_resnet
    import detr.modeling.timm_backbone  # noqa: F401


def register_data_sets() -> None:
    """The data set "shapes"."""
    from detr.data.shapes import register_shapes

    register_shapes()


def serve_detectron2() -> None:
    """Lets Detectron2's ``DefaultPredictor`` and the like load every format into a ``Detr``.

    They make a ``DetectionCheckpointer(model)`` and offer no choice. From this call on, that is a
    ``DetrCheckpointer`` where the model is a ``Detr``; for all other models nothing changes.
    """
    from detectron2.checkpoint import DetectionCheckpointer

    def choose(cls: type, model: Any = None, *args: Any, **kwargs: Any) -> Any:
        from detr.checkpoint.checkpointer import DetrCheckpointer, holds_detr

        return object.__new__(DetrCheckpointer if cls is DetectionCheckpointer and holds_detr(model) else cls)

    DetectionCheckpointer.__new__ = choose


def register_paths() -> None:
    """``torchvision://`` and ``detr://``."""
    from detectron2.utils.file_io import PathManager

    from detr.checkpoint.path_handlers import TorchvisionHandler, ZooHandler

    PathManager.register_handler(TorchvisionHandler())
    PathManager.register_handler(ZooHandler())


# What is done after a module is imported. What a function imports must not be what imports its key first, when half of
# it is imported: the packages detr.modeling, detr.data and detr.export import Detectron2's own before all else.
_AFTER: dict[str, Callable[[], None] | None] = {
    "fvcore.nn": None,  # it is only imported without warnings
    "detectron2.utils.file_io": register_paths,
    "detectron2.checkpoint": serve_detectron2,
    "detectron2.data": register_data_sets,
    "detectron2.modeling": register_models,
}


def register_on_import() -> None:
    """Registers at once what belongs to modules that are imported already, and the rest after their import."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    for name, register in _AFTER.items():
        if name in sys.modules and register is not None:
            register()


class _Finder(MetaPathFinder):
    """Finds the modules above as Python does, and lets their loaders do more."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _AFTER:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self]
        spec = next((x for finder in finders if (x := finder.find_spec(fullname, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            run = partial(_run, spec.loader.exec_module, _AFTER[fullname])
            spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec


def _run(exec_module: Callable[[ModuleType], None], register: Callable[[], None] | None, module: ModuleType) -> None:
    with warnings.catch_warnings():
        # fvcore and Detectron2 script small functions when they are imported, which torch has come to warn of.
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        exec_module(module)
    if register is not None:
        register()
