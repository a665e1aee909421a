"""What decides the order of images and all random numbers of a training, saved so that ``--resume`` goes on with it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from detr.data.training_stream import TrainingIterator, TrainingLoader, training_loader
from detr.engine.training_loader import keep_for_loader
from detr.random_state import seeded

logger = logging.getLogger(__name__)

# What the order depends on besides the seed: key of the saved state -> as a warning calls it.
_CONDITIONS = {
    "processes": "processes",
    "batch_size": "images a batch",
    "dataset_size": "images in the training set",
    "sampler": "DATALOADER.SAMPLER_TRAIN",
    "grouped": "DATALOADER.ASPECT_RATIO_GROUPING",
}


class DataOrder:
    """The seed of a training, and its loader with the position in the stream of images."""

    def __init__(self, cfg: CfgNode) -> None:
        """The seed is SEED where that is not negative, else drawn: the same on all ranks."""
        self._cfg = cfg
        self.seed: int = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.loader: TrainingLoader | None = None  # None: one whose position is not known

    def build(self, build_train_loader: Callable[[CfgNode], Any]) -> Any:
        """The loader that goes on from any position where the given one is Detectron2's, else the given one."""
        with seeded(self.seed):  # samplers draw their seed when they are built
            loader = build_train_loader(self._cfg)
        self.loader = training_loader(loader, self.seed)
        return loader if self.loader is None else self.loader

    def state_dict(self, iterator: Any, steps: int) -> dict[str, Any]:
        """Plain values, which are the same on all ranks.

        iterator: what the batches come from; where it is not the loader's own, one batch a step is counted
        steps: since the training began or was resumed
        """
        start = self.loader.batch_sampler.start if self.loader is not None else 0
        batches = iterator.taken if isinstance(iterator, TrainingIterator) else start + steps
        conditions = self._conditions()
        return {"seed": self.seed, "images": batches * conditions["batch_size"], **conditions}

    def resume(self, saved: Mapping[str, Any] | None, build_train_loader: Callable[[CfgNode], Any]) -> None:
        """Goes on where ``saved`` was; warns where the order is not the one that it would have been."""
        if saved is None:
            logger.warning(
                "the checkpoint does not say how far the training had come in the order of its images: the order "
                "begins again, with other random numbers"
            )
            return
        seed, batch_size = saved["seed"], self._conditions()["batch_size"]
        changes = [
            f"{name} {value}, not {saved.get(key)}"
            for (key, value), name in zip(self._conditions().items(), _CONDITIONS.values(), strict=True)
            if value != saved.get(key)
        ]
        if self._cfg.SEED >= 0 and seed != self.seed:
            changes.append(f"SEED {self.seed}, not {seed}")
        elif seed != self.seed:
            self.seed = seed
            self._rebuild(build_train_loader)
        if self.loader is None:
            logger.warning(
                "the loader of training images is not one of Detectron2's: which images come next is left to it"
            )
            return
        self.loader.batch_sampler.start = saved["images"] // batch_size
        if changes:
            logger.warning(
                "resuming after %d images; from here on, the order of images and the random numbers are not those of "
                "the uninterrupted training: %s",
                saved["images"],
                "; ".join(changes),
            )

    def _rebuild(self, build_train_loader: Callable[[CfgNode], Any]) -> None:
        """With this seed, and the data set that was read before; whoever holds the loader holds the new one."""
        loader = self.loader
        if loader is None:
            return
        with keep_for_loader(self._cfg, loader.dataset.dicts):
            self.build(build_train_loader)
        if self.loader is not None:
            loader.reload(self.loader)
            self.loader = loader

    def _conditions(self) -> dict[str, Any]:
        if self.loader is None:
            values = [comm.get_world_size(), self._cfg.SOLVER.IMS_PER_BATCH, None, None, None]
        else:
            ranks, batches = comm.get_world_size(), self.loader.batch_sampler
            sampler, size = type(batches.sampler).__name__, len(self.loader.dataset.images)
            values = [ranks, batches.batch_size * ranks, size, sampler, batches.dicts is not None]
        return dict(zip(_CONDITIONS, values, strict=True))
