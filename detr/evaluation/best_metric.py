"""Which metric chooses the best checkpoint and ends a training early, and which of two values is better."""

import math
from collections.abc import Collection

from detectron2.config import CfgNode

from detr.errors import InputError
from detr.evaluation.evaluators import TASK_NAMES, main_metric


def best_metric(cfg: CfgNode) -> str:
    """By its name in the event storage: TEST.BEST_METRIC, by default ``main_metric``."""
    return str(cfg.TEST.BEST_METRIC or main_metric(cfg))


def less_is_better(metric: str) -> bool:
    """Whether it is a loss or an error by its name: val_loss, my_val/val_loss_ce, class_error; not bbox/AP-glossy."""
    words = metric.rpartition("/")[2].split("_")
    return "/AP-" not in metric and ("loss" in words or "error" in words)


def is_better(metric: str, value: float, best: float | None) -> bool:
    """Whether a value is finite, and better than the best one so far; None: there is none."""
    if not math.isfinite(value):
        return False
    return best is None or (value < best if less_is_better(metric) else value > best)


def check_best_metric(cfg: CfgNode) -> None:
    """Raises InputError for a TEST.BEST_METRIC that no evaluation can give, as far as its name tells."""
    metric, sets = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    if not metric:
        return
    if len(sets) > 1 and metric.partition("/")[0] not in sets:
        raise InputError(
            f"TEST.BEST_METRIC is {metric}, but there are several test sets: put the one that counts in front, as in "
            f"{sets[0]}/{metric}"
        )
    if metric.rpartition("/")[2].startswith("val_loss") and not cfg.TEST.LOSS:
        raise InputError(f"TEST.BEST_METRIC is {metric}, which is not computed: set TEST.LOSS True")


def check_measured(cfg: CfgNode, names: Collection[str]) -> None:
    """Raises InputError where TEST.BEST_METRIC is not among the names of an evaluation's results.

    An evaluation of one image may lack whole tasks, such as PQ: what is of these is not refused.
    """
    metric = cfg.TEST.BEST_METRIC
    if not metric or not names or metric in names or less_is_better(metric):
        return
    task = metric.rpartition("/")[0]
    if task in {name.rpartition("/")[0] for name in names} or task.rpartition("/")[2] not in TASK_NAMES:
        raise InputError(
            f"TEST.BEST_METRIC is {metric}, which no evaluation gives: it gives {', '.join(sorted(names))}"
        )
