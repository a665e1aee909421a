"""Hooks of a training: which checkpoints stay on disk."""

import math
import os
import re
from collections.abc import Collection
from typing import Any

from detectron2.checkpoint import Checkpointer
from detectron2.engine import hooks


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's, which keeps the last few checkpoints and those from just before a drop of the learning rate."""

    def __init__(
        self, checkpointer: Checkpointer, period: int, *, max_to_keep: int | None, milestones: Collection[int]
    ) -> None:
        """max_to_keep: None for all; milestones: iterations, counted from 1, whose checkpoints are never deleted."""
        super().__init__(checkpointer, period)
        self.max_to_keep: int | None = max_to_keep
        self.milestones = frozenset(milestones)

    def before_train(self) -> None:
        super().before_train()
        # Those of the training that is resumed count too.
        for path in sorted(self.checkpointer.get_all_checkpoint_files()):
            numbered = re.fullmatch(rf"{self.file_prefix}_(\d+)\.pth", os.path.basename(path))
            if numbered and int(numbered[1]) + 1 not in self.milestones and int(numbered[1]) < self.trainer.start_iter:
                self.recent_checkpoints.append(path)

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Saves where the period or a milestone asks for it, and deletes the oldest one that is not to be kept."""
        if int(iteration) + 1 not in self.milestones:
            super().step(iteration, **kwargs)
            return
        max_to_keep, self.max_to_keep = self.max_to_keep, None
        if (int(iteration) + 1) % self.period:
            self.checkpointer.save(f"{self.file_prefix}_{int(iteration):07d}", iteration=int(iteration), **kwargs)
        super().step(iteration, **kwargs)
        self.max_to_keep = max_to_keep


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, which goes on from the best value so far when a training is resumed."""

    def after_train(self) -> None:
        """After the last evaluation the best checkpoint may be the final one, which is copied.

        Detectron2 would save again and count one iteration more, from which a resumed training would go on.
        """
        latest, _ = self.trainer.storage.latest().get(self._val_metric, (math.nan, 0))
        finished = self.trainer.iter >= self.trainer.max_iter
        if not finished or not (latest > (-math.inf if self.best_metric is None else self.best_metric)):
            return
        self.best_metric, self.best_iter = latest, self.trainer.max_iter - 1
        final, best = (
            os.path.join(self._checkpointer.save_dir, f"{name}.pth") for name in ("model_final", self._file_prefix)
        )
        if self._checkpointer.path_manager.isfile(final):
            self._checkpointer.path_manager.copy(final, best, overwrite=True)

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
