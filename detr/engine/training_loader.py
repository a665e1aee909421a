"""The loader of training images, which need not read the data sets that the trainer has checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.metadata import is_panoptic
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine import data_checks, samplers

# The training set while a Trainer is built: (DATASETS.TRAIN, dicts). Reading COCO twice would cost half a minute.
_loaded: ContextVar[tuple[Any, Any] | None] = ContextVar("loaded", default=None)


def build_detr_loader(cfg: CfgNode) -> Any:
    """Detectron2's loader with the mapper of the data set's kind: boxes and masks, or panoptic segments."""
    panoptic = is_panoptic(cfg.DATASETS.TRAIN[0])
    mapper = (DetrPanopticMapper if panoptic else DetrDatasetMapper)(cfg, is_train=True)
    loaded = _loaded.get()
    dicts = loaded[1] if loaded and loaded[0] == _source(cfg) else data_checks.load_training_sets(cfg)
    sampler = samplers.panoptic_sampler(cfg, dicts) if panoptic else None
    pinned = torch.cuda.is_available() and torch.device(cfg.MODEL.DEVICE).type == "cuda"
    return build_detection_train_loader(cfg, mapper=mapper, dataset=dicts, sampler=sampler, pin_memory=pinned)


@contextmanager
def keep_for_loader(cfg: CfgNode, dicts: Any) -> Iterator[None]:
    """Inside, ``build_detr_loader`` need not load the training set; afterwards the loader has its own copy.

    dicts: a list, or Detectron2's DatasetFromList, of which the loader makes no copy; an empty one is not taken
    """
    token = _loaded.set((_source(cfg), dicts) if len(dicts) else None)
    try:
        yield
    finally:
        _loaded.reset(token)


def _source(cfg: CfgNode) -> tuple[Any, ...]:
    return tuple(cfg.DATASETS.TRAIN), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
