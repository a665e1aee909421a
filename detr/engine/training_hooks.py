"""The hooks of a training: Detectron2's, with DETR's in place of some and more after evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from detectron2.engine import HookBase, hooks

from detr.engine import terminal
from detr.engine.early_stopping import EarlyStopping
from detr.engine.health import HealthHook
from detr.engine.hooks import BestCheckpointer, EvalHook, PeriodicCheckpointer, PeriodicWriter
from detr.engine.interruption import StopOnSignal
from detr.engine.metric_history import BoundedHistory
from detr.engine.progress import TrainingProgress
from detr.engine.validation_loss import validation_losses
from detr.engine.weight_average import AverageHook, with_average
from detr.evaluation.best_metric import best_metric
from detr.evaluation.evaluators import is_detr

if TYPE_CHECKING:
    from detr.engine.trainer import Trainer


def training_hooks(trainer: Trainer, defaults: Sequence[Any]) -> list[HookBase | None]:
    """Detectron2's default hooks with TEST.LOSS, SOLVER.PATIENCE and LOGGING.HEALTH of the trainer's config."""
    cfg = trainer.cfg
    average = [AverageHook(trainer.weight_average)] if trainer.weight_average is not None else []
    adapted = [BoundedHistory(), *average, *(x for hook in defaults for x in _in_place_of(trainer, hook))]
    if terminal.is_quiet():
        adapted.append(TrainingProgress(cfg, best_metric(cfg) if cfg.DATASETS.TEST else None))
    return adapted


def _in_place_of(trainer: Trainer, hook: Any) -> list[HookBase | None]:
    cfg, period = trainer.cfg, trainer.cfg.TEST.EVAL_PERIOD
    if type(hook) is hooks.PeriodicCheckpointer and is_detr(cfg):
        checkpointer = PeriodicCheckpointer(
            hook.checkpointer,
            hook.period,
            max_to_keep=cfg.SOLVER.CHECKPOINTS_KEPT or None,
            milestones=cfg.SOLVER.STEPS,
            evaluation_period=period,
        )
        return [checkpointer]
    if type(hook) is hooks.EvalHook:
        signals, evaluate = trainer.signals, with_average(trainer.weight_average, hook._func)
        evaluation = EvalHook(period, evaluate, signals=signals)
        return [StopOnSignal(signals), evaluation, *_hooks_after_evaluation(trainer)]
    if type(hook) is hooks.PeriodicWriter:
        writer = PeriodicWriter(hook._writers, hook._period, evaluation_period=period)
        if not is_detr(cfg):
            return [writer]
        # As the writer, these are in the main process only.
        health = [HealthHook(trainer.model)] if cfg.LOGGING.HEALTH else []
        # The last, since its checkpoint says that the evaluation is done with all that the others make of it.
        is_evaluated = cfg.DATASETS.TEST and period
        best = [BestCheckpointer(period, trainer.checkpointer, best_metric(cfg))] if is_evaluated else []
        return [*health, writer, *best]
    return [hook]


def _hooks_after_evaluation(trainer: Trainer) -> list[HookBase]:
    cfg, period, after = trainer.cfg, trainer.cfg.TEST.EVAL_PERIOD, list[HookBase]()
    if trainer.loss_loaders:
        losses = partial(validation_losses, trainer.model, trainer.loss_loaders)
        after.append(EvalHook(period, with_average(trainer.weight_average, losses), signals=trainer.signals))
    if not cfg.DATASETS.TEST or not period:
        return after
    if cfg.SOLVER.PATIENCE:
        metric = best_metric(cfg)
        after.append(
            EarlyStopping(patience=cfg.SOLVER.PATIENCE, period=period, metric=metric, checkpointer=trainer.checkpointer)
        )
    return after
