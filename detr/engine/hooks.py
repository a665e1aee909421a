"""Hooks of a training: when checkpoints and metrics are written, which checkpoints stay, when it is evaluated."""

import logging
import math
import os
import re
from collections.abc import Callable, Collection
from typing import Any

from detectron2.checkpoint import Checkpointer
from detectron2.engine import hooks
from detectron2.utils.events import EventWriter

from detr.engine.interruption import StoppedTraining, StopSignals
from detr.engine.run_writers import RunWriter

logger = logging.getLogger(__name__)


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's, which saves before every evaluation too, since that may fail.

    It keeps the last few checkpoints and those from just before a drop of the learning rate.
    """

    period: int

    def __init__(
        self,
        checkpointer: Checkpointer,
        period: int,
        *,
        max_to_keep: int | None,
        milestones: Collection[int],
        evaluation_period: int = 0,
    ) -> None:
        """
        max_to_keep: None for all
        milestones: iterations, counted from 1, whose checkpoints are never deleted
        evaluation_period: as EvalHook's; before the last evaluation, the final checkpoint is there anyway
        """
        super().__init__(checkpointer, period)
        self.max_to_keep: int | None = max_to_keep
        self.milestones = frozenset(milestones)
        self.evaluation_period = evaluation_period

    def before_train(self) -> None:
        super().before_train()
        # Those of the training that is resumed count too.
        for path in sorted(self.checkpointer.get_all_checkpoint_files()):
            numbered = re.fullmatch(rf"{self.file_prefix}_(\d+)\.pth", os.path.basename(path))
            if numbered and int(numbered[1]) + 1 not in self.milestones and int(numbered[1]) < self.trainer.start_iter:
                self.recent_checkpoints.append(path)

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Saves where the period, an evaluation or a milestone asks for it, and deletes the oldest of too many."""
        done = int(iteration) + 1
        period, max_to_keep = self.period, self.max_to_keep
        evaluated = self.evaluation_period > 0 and done % self.evaluation_period == 0 and done != self.max_iter
        if evaluated or done in self.milestones:
            self.period = 1
        if done in self.milestones:
            self.max_to_keep = None
        super().step(iteration, **kwargs)
        self.period, self.max_to_keep = period, max_to_keep


class EvalHook(hooks.EvalHook):
    """Detectron2's; a training that ends early, at an evaluation, is not evaluated twice. A signal ends it at once."""

    _eval_after_train: bool
    _evaluated = 0  # steps that were done at the last evaluation

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], *, signals: StopSignals) -> None:
        super().__init__(eval_period, eval_function)
        self._signals = signals

    def _do_eval(self) -> None:
        with self._signals.interruptible():
            super()._do_eval()
        self._evaluated = self.trainer.iter + 1

    def after_train(self) -> None:
        self._eval_after_train = self._eval_after_train and self._evaluated != self.trainer.iter
        try:
            super().after_train()
        except StoppedTraining:
            for hook in self.trainer._hooks:  # Detectron2 calls no further hook; the writers have metrics to write
                if isinstance(hook, hooks.PeriodicWriter):
                    hook.after_train()
            raise


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's, which writes after every evaluation too: of values between two writings only the last is kept."""

    def __init__(self, writers: list[EventWriter], period: int = 20, *, evaluation_period: int = 0) -> None:
        """evaluation_period: as EvalHook's, which comes before this hook."""
        super().__init__(writers, period)
        self._every, self._evaluation_period = period, evaluation_period

    def before_train(self) -> None:
        for writer in self._writers:
            if isinstance(writer, RunWriter):
                writer.start(resume=self.trainer.start_iter > 0)

    def after_step(self) -> None:
        evaluated = self._evaluation_period > 0 and (self.trainer.iter + 1) % self._evaluation_period == 0
        self._period = 1 if evaluated else self._every
        super().after_step()


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, for a metric of which more is better; a resumed training goes on from the best value so far."""

    best_metric: float | None
    best_iter: int | None

    def _best_checking(self) -> None:
        if self._improve(self.trainer.iter):  # before saving, since the checkpoint holds this hook's state too
            self._checkpointer.save(self._file_prefix, iteration=self.trainer.iter)

    def after_train(self) -> None:
        """Where the last evaluation is the best one, copies the final checkpoint.

        To save again after the last step would count one iteration more, from which a resumed training would go on.
        """
        if self.trainer.iter < self.trainer.max_iter or not self._improve(self.trainer.max_iter - 1):
            return
        folder, files = self._checkpointer.save_dir, self._checkpointer.path_manager
        final = os.path.join(folder, "model_final.pth")
        if files.isfile(final):
            files.copy(final, os.path.join(folder, f"{self._file_prefix}.pth"), overwrite=True)

    def _improve(self, iteration: int) -> bool:
        """Whether the metric's latest value is better than the best so far, which it then becomes."""
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning("no checkpoint is kept as the best: the evaluation gives no %s", self._val_metric)
            return False
        value = float(latest[0])
        if not math.isfinite(value) or (self.best_metric is not None and value <= self.best_metric):
            return False
        self.best_metric, self.best_iter = value, iteration
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
