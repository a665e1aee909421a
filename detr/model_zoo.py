"""The models that the authors released, by name: their configs, and they themselves, ready to use.

detr.model_zoo.get("detr_R_50")([{"image": image}])[0]["instances"]
"""

from pathlib import Path
from typing import TypeVar

import torch
from detectron2.config import CfgNode

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.hub import RELEASED, ZOO, ZooModel, entry
from detr.engine.defaults import load_config
from detr.modeling.meta_arch import Detr

__all__ = ["ZooModel", "config_file", "entry", "get", "get_config", "names"]

Model = TypeVar("Model", bound=Detr)


def names() -> list[str]:
    """The names of the released models."""
    return list(RELEASED)


def get_config(name: str) -> CfgNode:
    """The model's config, not frozen, with its released weights; MODEL.DEVICE is the CPU where there is no GPU.

    Raises InputError for an unknown name.
    """
    cfg = load_config(config_file(name), [])
    cfg.MODEL.WEIGHTS = ZOO + name
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def config_file(name: str) -> str:
    """The path of the model's YAML file. Raises InputError for an unknown name."""
    return str(_configs() / entry(name).config)


def get(
    name: str,
    pretrained: bool = True,
    device: torch.device | str | None = None,
    num_classes: int | None = None,
    model_class: type[Model] = Detr,  # type: ignore[assignment]
) -> Model:
    """The model itself, in evaluation mode.

    pretrained: with the released weights, which are downloaded the first time; else with random ones
    device: by default the GPU where there is one
    num_classes: another number than the released model's, for fine-tuning; the class head is then re-initialized
        except its no-object row, and a panoptic model returns instances only
    model_class: ``Detr`` or a subclass of it

    Raises InputError for an unknown name, and for weights that cannot be downloaded.
    """
    cfg = get_config(name)
    if num_classes is not None and num_classes != entry(name).num_classes:
        cfg.MODEL.DETR.NUM_CLASSES = num_classes
        cfg.MODEL.DETR.PANOPTIC.ENABLED = False  # whether they are things or stuff is unknown
    cfg.MODEL.DETR.FREEZE_DETR = False
    model = model_class(cfg)
    if pretrained:
        DetrCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _configs() -> Path:
    """The folder of the YAML files: in an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"
