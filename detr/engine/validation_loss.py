"""The losses on the test sets in training (TEST.LOSS): rising while those of training fall, they show overfitting."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.loading import load_dataset
from detr.data.metadata import is_panoptic
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine.dry_run import unchanged
from detr.errors import InputError
from detr.evaluation.evaluators import is_detr

# The criterion divides these by the number of objects, so that images weigh by theirs.
PER_OBJECT = ("loss_bbox", "loss_giou", "loss_mask", "loss_dice")

logger = logging.getLogger(__name__)


def check_loss(cfg: CfgNode) -> None:
    """Raises InputError for a TEST.LOSS that cannot work."""
    if cfg.TEST.LOSS and not cfg.DATASETS.TEST:
        raise InputError("TEST.LOSS is True, but DATASETS.TEST is empty: name a validation set there")
    if cfg.TEST.LOSS and not is_detr(cfg):
        raise InputError(
            f"TEST.LOSS is True, but {cfg.MODEL.META_ARCHITECTURE} has losses in training only: set it to False"
        )


def build_loss_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """Batches of one image of a test set, resized as in evaluation, with the targets of training; no augmentation.

    Raises InputError for a data set without annotations.
    """
    dicts = load_dataset(dataset_name)
    if not any(x.get("annotations") or x.get("segments_info") for x in dicts):
        raise InputError(
            f"TEST.LOSS is True, but the data set {dataset_name} has no annotations: set TEST.LOSS False, or name "
            "another set in DATASETS.TEST"
        )
    mapper = DetrPanopticMapper if is_panoptic(dataset_name) else DetrDatasetMapper
    options = {**mapper.from_config(cfg, is_train=False), "is_train": True}
    return build_detection_test_loader(dicts, mapper=mapper(**options), num_workers=cfg.DATALOADER.NUM_WORKERS)


def validation_losses(model: torch.nn.Module, loaders: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
    """The mean losses over data sets, on all ranks, whatever share of the images each of them has.

    model: a ``Detr``, or DistributedDataParallel around it. Its modes, and random states, are as before afterwards
    loaders: data set -> an iterable of this rank's batches, as ``Detr.evaluation_losses`` takes them

    Returns ``val_loss``, the sum of all, and the parts ``val_loss_ce`` ...; of several data sets a dict each.
    """
    results = {}
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    with unchanged(model, ()), EventStorage():  # what the model logs is of the training
        model.eval()
        for name, loader in loaders.items():
            losses = _means(inner, loader)
            results[name] = {"val_loss": sum(losses.values()), **{f"val_{key}": x for key, x in losses.items()}}
            logger.info("loss on %s: %.3f", name, results[name]["val_loss"])
    return next(iter(results.values())) if len(results) == 1 else results


def _means(model: Any, loader: Iterable[Any]) -> dict[str, float]:
    sums: dict[str, torch.Tensor] = {}  # on the device, so that no batch waits for it
    images = objects = 0
    for batch in loader:
        in_batch = sum(len(x["instances"]) for x in batch)
        for name, value in model.evaluation_losses(batch).items():
            sums[name] = sums.get(name, 0) + value * (in_batch if name.startswith(PER_OBJECT) else len(batch))
        images, objects = images + len(batch), objects + in_batch
    ranks = comm.all_gather((images, objects, {name: float(value) for name, value in sums.items()}))
    images, objects = sum(x[0] for x in ranks), sum(x[1] for x in ranks)
    names = dict.fromkeys(name for x in ranks for name in x[2])  # a rank may have no image
    return {
        name: sum(x[2].get(name, 0.0) for x in ranks) / max(objects if name.startswith(PER_OBJECT) else images, 1)
        for name in names
    }
