"""Early stopping: a training ends once evaluations bring nothing better, as cleanly as at the end of its schedule."""

import contextlib
import logging
from typing import Any

from detectron2.checkpoint import Checkpointer
from detectron2.config import CfgNode
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm

from detr.errors import InputError
from detr.evaluation.best_metric import is_better, less_is_better

logger = logging.getLogger(__name__)


class _ScheduleEnded(BaseException):
    """Leaves Detectron2's loop. No Exception, for the loop logs these as errors."""


class StoppableLoop(TrainerBase):
    """Detectron2's training loop, which ends early where a hook sets ``trainer.max_iter`` to ``trainer.iter + 1``.

    The hooks' ``after_train`` is called as at the end of a whole schedule. On several processes, the hook must do so
    on all of them in the same iteration.
    """

    def train(self, start_iter: int, max_iter: int) -> None:
        """As Detectron2's: iterations from ``start_iter`` up to ``max_iter``, which is not included."""
        with contextlib.suppress(_ScheduleEnded):
            super().train(start_iter, max_iter)

    def before_step(self) -> None:
        if self.iter >= self.max_iter:
            raise _ScheduleEnded
        super().before_step()


class EarlyStopping(HookBase):
    """Ends a training after so many evaluations in a row without a better value of a metric (see ``is_better``).

    It comes after the hook that evaluates, in a trainer that is a ``StoppableLoop``. The main process decides for all.
    A training that had stopped and is resumed takes no step, unless it is given more patience. An evaluation whose
    value is not finite counts as not better.
    """

    def __init__(self, *, patience: int, period: int, metric: str, checkpointer: Checkpointer) -> None:
        """
        patience: evaluations; period: iterations between them, as EvalHook's
        metric: its name in the event storage
        checkpointer: saves the last state as ``model_final``
        """
        self.patience = patience
        self.period = period
        self.metric = metric
        self.checkpointer = checkpointer
        self.best: float | None = None
        self.best_iteration = 0  # counted from 1
        self.not_better = 0  # evaluations since the best one
        self._is_missing = False

    def before_train(self) -> None:
        """Raises TypeError in a trainer that cannot stop."""
        if not isinstance(self.trainer, StoppableLoop):
            raise TypeError("EarlyStopping needs a trainer that derives from detr.engine.early_stopping.StoppableLoop")
        start = self.trainer.start_iter
        if self.not_better >= self.patience and start < self.trainer.max_iter:
            logger.warning(
                "this training had stopped early after iteration %d: %s. It takes no further step; to go on, set "
                "SOLVER.PATIENCE above %d, or to 0",
                start,
                self._reason(),
                self.not_better,
            )
            self.trainer.max_iter = start

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period or done == self.trainer.max_iter:
            return
        self._count(done)
        if self.not_better >= self.patience:
            logger.warning(
                "the training stops early, after iteration %d of %d: %s (SOLVER.PATIENCE)",
                done,
                self.trainer.max_iter,
                self._reason(),
            )
            self.trainer.max_iter = done
            self.checkpointer.save("model_final", iteration=self.trainer.iter)

    def _count(self, done: int) -> None:
        latest = self.trainer.storage.latest().get(self.metric)
        # Only the main process has results.
        value = comm.all_gather(latest[0] if latest and latest[1] == self.trainer.iter else None)[0]
        if value is None:
            if not self._is_missing:
                logger.warning("the training cannot stop early (SOLVER.PATIENCE): no evaluation gives %s", self.metric)
            self._is_missing = True
        elif is_better(self.metric, value, self.best):
            self.best, self.best_iteration, self.not_better = value, done, 0
        else:
            self.not_better += 1

    def _reason(self) -> str:
        side = "below" if less_is_better(self.metric) else "above"
        best = "finite" if self.best is None else f"{side} the {self.best:.2f} of iteration {self.best_iteration}"
        evaluations = "1 evaluation" if self.not_better == 1 else f"{self.not_better} evaluations"
        return f"{self.metric} has not been {best} in {evaluations}"

    def state_dict(self) -> dict[str, Any]:
        state = {"best": self.best, "best_iteration": self.best_iteration, "not_better": self.not_better}
        return {**state, "metric": self.metric}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("metric", self.metric) != self.metric:
            return
        self.best, self.best_iteration = state_dict["best"], state_dict["best_iteration"]
        self.not_better = state_dict["not_better"]


def check_patience(cfg: CfgNode) -> None:
    """Raises InputError for a SOLVER.PATIENCE that cannot work.

    cfg: with its schedule in iterations
    """
    patience = cfg.SOLVER.PATIENCE
    if patience < 0:
        raise InputError(f"SOLVER.PATIENCE is {patience}: it must be a number of evaluations, or 0 to never stop early")
    if patience and not cfg.DATASETS.TEST:
        raise InputError(f"SOLVER.PATIENCE {patience} needs evaluations: name a validation set in DATASETS.TEST")
    if patience and cfg.TEST.EVAL_PERIOD <= 0:
        raise InputError(
            f"SOLVER.PATIENCE {patience} needs evaluations during the training: set TEST.EVAL_EPOCHS or EVAL_PERIOD"
        )
