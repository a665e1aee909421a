"""What scripts that know nothing of DETR need for its configs: the keys, the optimizer and the mapper."""

from collections.abc import Callable
from typing import Any

import detectron2.data.build
import detectron2.engine.defaults
import detectron2.solver.build
import torch
from detectron2.config import CfgNode, defaults
from detectron2.data import DatasetMapper

from detr.config import add_detr_config
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.metadata import is_panoptic
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine import solver
from detr.evaluation.evaluators import is_detr

_build_optimizer = detectron2.solver.build.build_optimizer  # Detectron2's own, for other models


def serve_scripts() -> None:
    """Lets scripts that are imported from here on in this process use DETR's configs as Detectron2's own.

    ``get_cfg()`` has DETR's keys. For the config of a ``Detr``, ``build_optimizer`` is DETR's, and Detectron2's loaders
    use DETR's mappers where a script names none. Nothing changes for the configs of other models.
    """
    add_detr_config(defaults._C)  # get_cfg copies it
    detectron2.data.build.DatasetMapper = build_mapper
    for module in (detectron2.solver, detectron2.solver.build, detectron2.engine.defaults):
        module.build_optimizer = build_optimizer


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """DETR's for a ``Detr``, Detectron2's for other models. Raises InputError as ``solver.build_optimizer``."""
    return solver.build_optimizer(cfg, model) if is_detr(cfg) else _build_optimizer(cfg, model)


def build_mapper(cfg: CfgNode, is_train: bool = True) -> Callable[[dict[str, Any]], Any]:
    """The mapper that ``Trainer`` would use. Raises InputError as DETR's mappers."""
    if not is_detr(cfg):
        return DatasetMapper(cfg, is_train)  # type: ignore[no-any-return]
    panoptic = is_train and is_panoptic(cfg.DATASETS.TRAIN[0])
    return (DetrPanopticMapper if panoptic else DetrDatasetMapper)(cfg, is_train=is_train)
