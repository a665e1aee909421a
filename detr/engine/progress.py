"""How far a training or an evaluation is: a bar on a terminal, else a line now and then."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase
from tqdm import tqdm

from detr.engine.terminal import format_seconds, is_quiet, show
from detr.engine.test_loader import EvaluationLoader
from detr.evaluation.best_metric import less_is_better
from detr.evaluation.evaluators import TASK_NAMES

INTERVALS = (10.0, 20.0, 30.0, 45.0, 60.0)  # seconds before each line where there is no bar; the last one stays
EVALUATION_DELAY = 3.0  # seconds that an evaluation may take without a bar
NOTE_INTERVAL = 0.5  # seconds between changes of what stands beside the bar
MEASURED = 20  # steps before their time is said
WINDOW = 20  # iterations over which the loss is smoothed


class Meter:
    """A bar on stderr where that is a terminal, else lines on stdout; nothing beside Detectron2's log."""

    def __init__(self, name: str, total: int, *, start: int = 0, delay: float = 0.0, leave: bool = True) -> None:
        """
        name: of what is counted; total, start: counts at the end and at the beginning
        delay: seconds until the bar appears
        leave: whether it stays when all is done
        """
        self.name, self.total, self.count = name, total, start
        self.bar: tqdm[Any] | None = None
        self.shown, self.lines = is_quiet(), 0
        self.last = time.perf_counter()
        if self.shown and sys.stderr.isatty():
            self.bar = tqdm(
                desc=name,
                total=total,
                initial=start,
                delay=delay,
                leave=leave,
                file=sys.stderr,
                # Some pseudo-terminals say that they have 0 lines and columns, and tqdm would print nothing.
                dynamic_ncols=min(os.get_terminal_size(sys.stderr.fileno())) > 0,
                ncols=80,
                nrows=24,
                bar_format="{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt}{postfix}",
            )

    def update(self, note: Callable[[], str] = lambda: "") -> None:
        """Counts one more. note: makes the text beside the count, and is called only where it will be shown"""
        self.count += 1
        if not self.shown:
            return
        seconds = time.perf_counter() - self.last
        if self.bar is not None:
            if seconds >= NOTE_INTERVAL:
                self.bar.set_postfix_str(note(), refresh=False)
                self.last += seconds
            self.bar.update()
        elif seconds >= INTERVALS[min(self.lines, len(INTERVALS) - 1)] and self.count < self.total:
            text = note()
            show(f"{self.name} {self.count}/{self.total}{', ' if text else ''}{text}")
            self.last += seconds
            self.lines += 1

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class TrainingProgress(HookBase):
    """Shows iterations, epoch, loss, the last evaluation's result and the time left."""

    def __init__(self, cfg: CfgNode, metric: str | None) -> None:
        """
        cfg: its schedule in iterations
        metric: the name in the event storage of the number that counts, such as bbox/AP; None without an evaluation
        """
        self.metric = metric
        self.epochs, self.evaluation_period = cfg.SOLVER.MAX_EPOCHS, cfg.TEST.EVAL_PERIOD
        self.meter: Meter | None = None

    def before_train(self) -> None:
        self.started = time.perf_counter()
        self.meter = Meter("training", self.trainer.max_iter, start=self.trainer.start_iter)

    def after_step(self) -> None:
        assert self.meter is not None
        self.meter.update(self.note)
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.meter.close()  # before the last evaluation shows its own

    def after_train(self) -> None:
        if self.meter is not None:
            self.meter.close()

    def note(self) -> str:
        """What stands beside the count."""
        storage, trainer = self.trainer.storage, self.trainer
        parts = []
        if self.epochs:
            epoch = trainer.iter * self.epochs // trainer.max_iter + 1
            parts.append(f"epoch {epoch}/{self.epochs}")
        if "total_loss" in storage.histories():
            parts.append(f"loss {storage.history('total_loss').median(WINDOW):.2f}")
        form = ".3f" if self.metric is not None and less_is_better(self.metric) else ".1f"
        if self.metric is not None and self.metric in storage.latest():
            parts.append(f"{metric_name(self.metric)} {storage.latest()[self.metric][0]:{form}}")
        done = trainer.iter + 1 - trainer.start_iter
        timed = storage.histories().get("time")
        if timed is not None and done >= min(MEASURED, trainer.max_iter // 2):
            period, step = self.evaluation_period, timed.global_avg()
            left = seconds_left(
                steps_left=trainer.max_iter - trainer.iter - 1,
                step=step,
                evaluations=(trainer.iter + 1) // period - trainer.start_iter // period if period else 0,
                evaluations_left=-(-trainer.max_iter // period) - (trainer.iter + 1) // period if period else 0,
                other=max(time.perf_counter() - self.started - done * step, 0.0),
            )
            parts.append(f"about {format_seconds(left)} left")
        return ", ".join(parts)


def seconds_left(*, steps_left: int, step: float, evaluations: int, evaluations_left: int, other: float) -> float:
    """The time that a training still needs.

    step: seconds of a step; other: seconds so far of all that is no step, evaluations above all
    evaluations: so far; where there was none yet, those to come are not counted
    """
    return steps_left * step + (evaluations_left * other / evaluations if evaluations else 0.0)


def metric_name(metric: str) -> str:
    """What a metric of the event storage is called: box AP for bbox/AP."""
    if "/" not in metric or less_is_better(metric):
        return metric
    *data_set, task, name = metric.split("/")
    return " ".join([*data_set, f"{TASK_NAMES.get(task, f'{task} ')}{name}"])


class CountedTests:
    """In the place of a trainer's class while it tests: its test loaders show how far they are."""

    def __init__(self, trainer: type[DefaultTrainer]) -> None:
        self._trainer = trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> "CountedLoader":
        return CountedLoader(self._trainer.build_test_loader(cfg, dataset_name), dataset_name)


class CountedLoader:
    """A test loader that shows how much of it has been evaluated."""

    def __init__(self, loader: Any, name: str) -> None:
        self.loader, self.name = loader, name

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batched = isinstance(self.loader, EvaluationLoader)
        total = self.loader.num_images if batched else len(self.loader)  # of another loader, batches are counted
        meter = Meter(f"evaluating {self.name}", total, delay=EVALUATION_DELAY, leave=False)
        started = time.perf_counter()

        def note() -> str:
            left = (time.perf_counter() - started) / meter.count * (meter.total - meter.count)
            return f"about {format_seconds(left)} left"

        try:
            for batch in self.loader:
                yield batch
                for _ in range(len(batch) if batched else 1):
                    meter.update(note)
        finally:
            meter.close()
