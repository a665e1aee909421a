"""Hooks of a training: when checkpoints and metrics are written, which checkpoints stay, when it is evaluated."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase, TrainerBase, hooks
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter

from detr.checkpoint.files import damage
from detr.engine.early_stopping import EarlyStopping
from detr.engine.interruption import StoppedTraining, StopSignals
from detr.engine.run_writers import RunWriter
from detr.errors import DiskError, InputError
from detr.evaluation.best_metric import is_better
from detr.whole_files import copy_whole, name_disk_errors

logger = logging.getLogger(__name__)


def evaluated_steps(trainer_hooks: Sequence[HookBase]) -> int:
    """How many steps were done at the last evaluation; 0 where there was none."""
    return max((hook.evaluated for hook in trainer_hooks if isinstance(hook, EvalHook)), default=0)


def finish_evaluation(trainer: TrainerBase, trainer_hooks: Sequence[HookBase], evaluated: int | None) -> None:
    """Evaluates first where a training goes on from a checkpoint whose evaluation is not known to have ended.

    A checkpoint is saved before its evaluation: without this, early stopping and the best checkpoint would miss one.

    evaluated: ``evaluated_steps`` of the checkpoint; None where it does not say
    """
    start, evaluations = trainer.start_iter, [hook for hook in trainer_hooks if isinstance(hook, EvalHook)]
    if not start or evaluated in (None, start) or not any(hook.is_due(start) for hook in evaluations):
        return
    logger.info("iteration %d has not been evaluated: evaluating first", start)
    trainer.iter = trainer.storage.iter = start - 1
    for hook in trainer_hooks:
        if isinstance(hook, (EvalHook, EarlyStopping, hooks.BestCheckpointer, PeriodicWriter)):
            hook.after_step()
    trainer.iter = trainer.storage.iter = start


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
        iteration = int(iteration)
        done, is_last = iteration + 1, self.max_iter is not None and iteration + 1 >= self.max_iter
        evaluated = self.evaluation_period > 0 and done % self.evaluation_period == 0 and done != self.max_iter
        if done % self.period == 0 or evaluated or done in self.milestones:
            name = f"{self.file_prefix}_{iteration:07d}"
            self.checkpointer.save(name, iteration=iteration, **kwargs)
            if self.max_to_keep is not None and done not in self.milestones:
                self._delete_oldest(os.path.join(self.checkpointer.save_dir, f"{name}.pth"))
        if is_last:
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=iteration, **kwargs)

    def _delete_oldest(self, new: str) -> None:
        """Deletes none before the new one was read again: an earlier one may be the last that is whole."""
        self.recent_checkpoints.append(new)
        if len(self.recent_checkpoints) <= (self.max_to_keep or 0):
            return
        if reason := damage(new):
            logger.warning("%s: no earlier checkpoint is deleted", reason)
            return
        while len(self.recent_checkpoints) > (self.max_to_keep or 0):
            old = self.recent_checkpoints.pop(0)
            if self.path_manager.exists(old):
                self.path_manager.rm(old)


class EvalHook(hooks.EvalHook):
    """Detectron2's; a training that ends early, at an evaluation, is not evaluated twice. A signal ends it at once."""

    _period: int
    _eval_after_train: bool
    evaluated = 0  # steps that were done at the last evaluation

    def __init__(self, eval_period: int, eval_function: Callable[[], Any], *, signals: StopSignals) -> None:
        super().__init__(eval_period, eval_function)
        self._signals = signals

    def _do_eval(self) -> None:
        with self._signals.interruptible():
            super()._do_eval()
        self.evaluated = self.trainer.iter + 1

    def is_due(self, steps: int) -> bool:
        return self._period > 0 and steps % self._period == 0

    def after_train(self) -> None:
        # An error in the last step's hooks, as of a full disk, is not held up by an evaluation.
        finished = self.trainer.iter >= self.trainer.max_iter
        self._eval_after_train = self._eval_after_train and finished and self.evaluated != self.trainer.iter
        try:
            super().after_train()
        except StoppedTraining:
            for hook in self.trainer._hooks:  # Detectron2 calls no further hook; the writers have metrics to write
                if isinstance(hook, hooks.PeriodicWriter):
                    hook.after_train()
            raise


class PeriodicWriter(hooks.PeriodicWriter):
    """Detectron2's, which writes after every evaluation too: of values between two writings only the last is kept."""

    _writers: list[EventWriter]

    def __init__(self, writers: list[EventWriter], period: int = 20, *, evaluation_period: int = 0) -> None:
        """evaluation_period: as EvalHook's, which comes before this hook."""
        super().__init__(writers, period)
        self._evaluation_period = evaluation_period

    def before_train(self) -> None:
        for writer in self._writers:
            if isinstance(writer, RunWriter):
                writer.start(resume=self.trainer.start_iter > 0)

    def after_step(self) -> None:
        done, period = self.trainer.iter + 1, self._evaluation_period
        if done % self._period == 0 or done == self.trainer.max_iter or (period > 0 and done % period == 0):
            for writer in self._writers:
                self._use(writer, writer.write)

    def after_train(self) -> None:
        """Of an error of the disk that ends the training, no second one is made."""
        ends = isinstance(sys.exc_info()[1], DiskError)
        with contextlib.suppress(InputError) if ends else contextlib.nullcontext():
            for writer in self._writers:
                self._use(writer, writer.write, writer.close)

    def _use(self, writer: EventWriter, *actions: Callable[[], None]) -> None:
        """Raises DiskError, which names the writer's files, where they cannot be written; all are then closed."""
        try:
            with name_disk_errors(_files_of(writer)):
                for action in actions:
                    action()
        except InputError:
            for other in self._writers:
                with contextlib.suppress(OSError):
                    other.close()
            self._writers = []
            raise


def _files_of(writer: EventWriter) -> str:
    """The file or folder that one of Detectron2's writers fills."""
    if isinstance(writer, JSONWriter):
        return str(writer._file_handle.name)
    return str(writer._writer_args["log_dir"]) if isinstance(writer, TensorboardXWriter) else type(writer).__name__


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, by ``is_better``; a resumed training goes on from the best value so far of the same metric."""

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
            copy_whole(final, os.path.join(folder, f"{self._file_prefix}.pth"), files)

    def _improve(self, iteration: int) -> bool:
        """Whether the metric's latest value is better than the best so far, which it then becomes."""
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            names = sorted(name for name in self.trainer.storage.latest() if "/" in name or name.startswith("val_loss"))
            logger.warning(
                "no checkpoint is kept as the best: the evaluation gives no %s (TEST.BEST_METRIC). There are %s",
                self._val_metric,
                ", ".join(names) or "no results",
            )
            return False
        value = float(latest[0])
        if not is_better(self._val_metric, value, self.best_metric):
            return False
        self.best_metric, self.best_iter = value, iteration
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best_metric": self.best_metric, "best_iter": self.best_iter, "metric": self._val_metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("metric", self._val_metric) == self._val_metric:
            self.best_metric, self.best_iter = state_dict["best_metric"], state_dict["best_iter"]
