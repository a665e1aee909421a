"""Runs the authors' own code beside ours: finds it, imports it without side effects, and builds its models.

It is the code of the PyPI package `detr==0.1.4` and of the authors' repository: top-level packages `models`,
`util` and `datasets`, written for a torchvision of 2020.
"""

import argparse
import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

PACKAGES = ("models", "util", "datasets")
CHECKOUT = Path(__file__).resolve().parents[2] / ".oracle"  # where `make oracle` puts it

Original = tuple[Any, Any, dict[str, Any]]  # model, criterion, postprocessors: nn.Module, untyped

# What the original's builders read, with its command line's defaults. Its losses and matching costs
# carry the paper's weights; lr_backbone above zero only means that res3 to res5 are trained.
_DEFAULTS: dict[str, Any] = {
    **{"hidden_dim": 256, "nheads": 8, "dim_feedforward": 2048, "enc_layers": 6, "dec_layers": 6},
    **{"num_queries": 100, "dropout": 0.1, "pre_norm": False, "position_embedding": "sine", "dilation": False},
    **{"masks": False, "aux_loss": True, "frozen_weights": None, "lr_backbone": 1e-5, "device": "cpu"},
    **{"set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2, "eos_coef": 0.1},
    **{"bbox_loss_coef": 5, "giou_loss_coef": 2, "mask_loss_coef": 1, "dice_loss_coef": 1},
}
_DATA_SETS = {91: "coco", 250: "coco_panoptic"}  # by the number of classes that the original gives them


def find_original() -> Path | None:
    """The folder that holds the authors' code: `.oracle` of a checkout, else one on Python's path."""
    for folder in (CHECKOUT, *map(Path, sys.path)):
        if all((folder / name).is_file() for name in ("models/detr.py", "models/transformer.py", "util/misc.py")):
            return folder
    return None


@functools.cache
def load_original(root: Path) -> types.SimpleNamespace:
    """Imports the code in `root` once, and leaves `sys.path`, `sys.modules` and torchvision as they were.

    Returns all its classes and functions by name, and its modules `box_ops` and `transforms`.
    """
    with _importable(root):
        for name in ("models", "datasets.coco"):  # these import all the others, but for two
            importlib.import_module(name)
        if importlib.util.find_spec("panopticapi"):
            importlib.import_module("datasets.coco_panoptic")
            importlib.import_module("datasets.panoptic_eval")
        modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] in PACKAGES}
    original, stand_in = types.SimpleNamespace(), _old_torchvision()
    for name, module in modules.items():
        if getattr(module, "torchvision", None) is torchvision:
            module.torchvision = stand_in  # type: ignore[attr-defined]
        if name not in ("util.box_ops", "datasets.transforms"):
            own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == name}
            vars(original).update(own)
    original.box_ops, original.transforms = modules["util.box_ops"], modules["datasets.transforms"]
    return original


def build(original: types.SimpleNamespace, *, depth: int = 50, num_classes: int = 91, **options: Any) -> Original:
    """The original (model, criterion, postprocessors) with random weights, in eval mode.

    original: from ``load_original``
    depth: of the ResNet
    num_classes: without no-object; the original's own are 91, and 250 for panoptic
    options: override any of the original's defaults, such as `masks` or `dilation`
    """
    if unknown := options.keys() - _DEFAULTS.keys():
        raise TypeError(f"the original has no options {sorted(unknown)}")
    chosen = {**_DEFAULTS, **options, "backbone": f"resnet{depth}", "dataset_file": _DATA_SETS.get(num_classes, "coco")}
    model, criterion, postprocessors = original.build_model(argparse.Namespace(**chosen))
    if num_classes not in _DATA_SETS:
        detector = getattr(model, "detr", model)
        detector.class_embed = nn.Linear(chosen["hidden_dim"], num_classes + 1)
        rest = (criterion.matcher, criterion.weight_dict, criterion.eos_coef, criterion.losses)
        criterion = original.SetCriterion(num_classes, *rest)
    return model.eval(), criterion.eval(), postprocessors


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Inside, the top-level `models`, `util` and `datasets` of `root` win over any others of that name."""
    path, version = list(sys.path), torchvision.__version__
    others = _pop_packages()
    sys.path.insert(0, str(root))
    torchvision.__version__ = "0.9.0"  # "0.29.1"[:3] reads as 0.2, older than anything it supports
    try:
        yield
    finally:
        torchvision.__version__ = version
        sys.path[:] = path
        _pop_packages()
        sys.modules.update(others)


def _pop_packages() -> dict[str, types.ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
    return {name: sys.modules.pop(name) for name in names}


def _old_torchvision() -> types.SimpleNamespace:
    """torchvision as that code expects it: a version it can compare, and ResNets without downloads."""

    def resnet(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        return getattr(torchvision.models, name)(weights=None, **options)  # type: ignore[no-any-return]

    resnets = {name: functools.partial(resnet, name) for name in ("resnet18", "resnet34", "resnet50", "resnet101")}
    changes = {"__version__": "0.9.0", "models": types.SimpleNamespace(**resnets)}
    return types.SimpleNamespace(**{**vars(torchvision), **changes})
