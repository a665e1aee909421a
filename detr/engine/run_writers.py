"""Writers of a training's metrics to Weights & Biases (LOGGING.WANDB) and MLflow (LOGGING.MLFLOW).

Detectron2's event writers around the two packages, which are extras and are imported only where they are asked for.
"""

import importlib
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage
from detectron2.utils.file_io import PathManager

from detr.errors import InputError

OPENING_SECONDS = 30  # for a server to answer before the training begins without it
CLOSING_SECONDS = 60  # for what is still to be sent when a training ends

logger = logging.getLogger(__name__)


class RunWriter(EventWriter):
    """Sends scalars to a run of a tracker, from a thread of its own, so that no server holds a training up or ends it.

    The first failure is a warning. What could not be sent is tried again with what comes next; where the run cannot
    even be opened, nothing is sent. A subclass opens, sends and finishes.
    """

    title: str  # of the tracker
    file_name: str  # in the folder, where the run's id is kept for a training that is resumed

    def __init__(self, *, folder: str, config: Mapping[str, Any], window_size: int = 20) -> None:
        """
        folder: of the training; the run is called after it
        config: of the training, as nested dicts, for the run's parameters
        window_size: iterations whose median is sent, of scalars with a smoothing hint, as Detectron2's writers do
        """
        self.folder = folder
        self.name = os.path.basename(os.path.abspath(folder))
        self.config = config
        self._window_size = window_size
        self._last_write = -1
        self._queue: queue.SimpleQueue[dict[int, dict[str, float]] | bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._opened = threading.Event()  # or has failed to
        self._warned = False

    def open(self, run_id: str | None) -> str:
        """Opens the run of that id, or a new one for None. Returns its id."""
        raise NotImplementedError

    def send(self, scalars: Mapping[int, Mapping[str, float]]) -> None:
        """scalars: iteration, counted from 0 -> name -> value."""
        raise NotImplementedError

    def finish(self, failed: bool) -> None:
        """failed: whether an error or an interruption ended the training."""
        raise NotImplementedError

    def start(self, resume: bool) -> None:
        """Opens the run before the first step: with ``resume``, the one that the folder's training had.

        It waits for that, though not for ever: a tracker starts programs, and processes of data loading that are forked
        in that moment would keep the programs' pipes open, so that nobody could read these to their end.
        """
        self._thread = threading.Thread(target=self._work, args=(resume,), name=self.title, daemon=True)
        self._thread.start()
        self._opened.wait(OPENING_SECONDS)

    def write(self) -> None:
        """Sends what the event storage holds that is newer than what was sent before."""
        if self._thread is None:
            self.start(resume=False)
        new: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last_write:
                new.setdefault(iteration, {})[name] = value
        if new:
            self._last_write = max(new)
            self._queue.put(new)

    def close(self) -> None:
        if self._thread is None:
            return
        # In the `finally` of the training loop, the error that ends a training is the one that is being handled.
        self._queue.put(isinstance(sys.exc_info()[1], (Exception, KeyboardInterrupt)))
        self._thread.join(CLOSING_SECONDS)
        if self._thread.is_alive():
            logger.warning("%s: not everything was sent within %s seconds", self.title, CLOSING_SECONDS)
        self._thread = None

    def _work(self, resume: bool) -> None:
        is_open = self._try(self._open_and_keep_id, resume)
        self._opened.set()
        pending: dict[int, dict[str, float]] = {}
        while not isinstance(item := self._queue.get(), bool):
            for iteration, scalars in item.items() if is_open else ():
                pending.setdefault(iteration, {}).update(scalars)
            if pending and self._try(self.send, pending):
                pending = {}
        if is_open:
            self._try(self.finish, item)

    def _open_and_keep_id(self, resume: bool) -> None:
        path = os.path.join(self.folder, self.file_name)
        known = None
        if resume and PathManager.isfile(path):
            with PathManager.open(path) as file:
                known = file.read().strip()
        run_id = self.open(known)
        with PathManager.open(path, "w") as file:
            file.write(run_id)

    def _try(self, action: Callable[..., None], *arguments: Any) -> bool:
        try:
            action(*arguments)
        except Exception as error:  # the packages raise many kinds, and none may end a training
            self._warn(_first_line(error))
            return False
        return True

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logger.warning("%s fails, and the training goes on without it: %s", self.title, reason)
        self._warned = True


class WandbWriter(RunWriter):
    """To Weights & Biases; a run that the user has opened is used, and left open."""

    title, file_name = "Weights & Biases", "wandb_run_id.txt"

    def __init__(self, *, project: str, **options: Any) -> None:
        """options: of RunWriter."""
        super().__init__(**options)
        self.project = project
        self._run: Any = None
        self._is_own = True

    def open(self, run_id: str | None) -> str:
        wandb = importlib.import_module("wandb")
        self._run, self._is_own = wandb.run, wandb.run is None
        if self._is_own:
            self._run = wandb.init(
                project=self.project,
                name=self.name,
                id=run_id,
                resume="allow" if run_id else None,
                dir=self.folder,
                config=self.config,
                # The terminal stays as it is: nothing is captured, and little is printed.
                settings=wandb.Settings(console="off", quiet=True),
            )
        else:
            self._run.config.update(self.config, allow_val_change=True)
        # Steps of wandb's own could not go back to the checkpoint that a training is resumed from.
        self._run.define_metric("*", step_metric="iteration")
        logger.info("Weights & Biases: %s", self._run.url if not self._run.offline else self._run.dir)
        return str(self._run.id)

    def send(self, scalars: Mapping[int, Mapping[str, float]]) -> None:
        for iteration in sorted(scalars):
            self._run.log({**scalars[iteration], "iteration": iteration})

    def finish(self, failed: bool) -> None:
        if self._is_own:
            self._run.finish(exit_code=int(failed))


class MlflowWriter(RunWriter):
    """To MLflow, in the experiment of the environment variable MLFLOW_EXPERIMENT_NAME, as MLflow has it."""

    title, file_name = "MLflow", "mlflow_run_id.txt"

    def __init__(self, *, tracking_uri: str, **options: Any) -> None:
        """options: of RunWriter."""
        super().__init__(**options)
        self.tracking_uri = tracking_uri
        self._client: Any = None
        self._run_id = ""

    def open(self, run_id: str | None) -> str:
        mlflow, entities = importlib.import_module("mlflow"), importlib.import_module("mlflow.entities")
        self._client = client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        if run_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
            experiment = client.get_experiment_by_name(name)
            experiment_id = client.create_experiment(name) if experiment is None else experiment.experiment_id
            run = client.create_run(experiment_id, run_name=self.name)
        else:
            run = client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
        self._run_id = run.info.run_id
        # A parameter cannot be changed: those of a run that goes on are the first ones.
        new = {name: value for name, value in _flat(self.config).items() if name not in run.data.params}
        params = [entities.Param(name, str(value)) for name, value in new.items()]
        for start in range(0, len(params), 100):  # at most so many at once
            client.log_batch(self._run_id, params=params[start : start + 100])
        return str(self._run_id)

    def send(self, scalars: Mapping[int, Mapping[str, float]]) -> None:
        metric, now = importlib.import_module("mlflow.entities").Metric, int(time.time() * 1000)
        metrics = [
            # A class may be called as no metric can be.
            metric(re.sub(r"[^\w/.\- ]", "_", name), value, now, iteration)
            for iteration, values in scalars.items()
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + 1000])

    def finish(self, failed: bool) -> None:
        self._client.set_terminated(self._run_id, status="FAILED" if failed else "FINISHED")


def build_run_writers(cfg: CfgNode) -> list[RunWriter]:
    """Those that LOGGING asks for."""
    config = yaml.safe_load(cfg.dump())
    del config["LOGGING"]  # a tracking URI may hold a password
    options = {"folder": cfg.OUTPUT_DIR, "config": config}
    writers: list[RunWriter] = []
    if cfg.LOGGING.WANDB:
        writers.append(WandbWriter(project=cfg.LOGGING.WANDB, **options))
    if cfg.LOGGING.MLFLOW:
        writers.append(MlflowWriter(tracking_uri=cfg.LOGGING.MLFLOW, **options))
    return writers


def check_logging(cfg: CfgNode) -> None:
    """Raises InputError where a package that LOGGING needs is missing, or cannot be used as it is set up."""
    if cfg.LOGGING.WANDB:
        wandb = _import("wandb", "init", key="WANDB")
        try:
            if wandb.run is None and wandb.setup().settings.mode == "online":
                wandb.login()
        except wandb.errors.UsageError as error:
            raise InputError(
                "LOGGING.WANDB is set, but nobody is logged in to Weights & Biases: run `wandb login`, or set the "
                "environment variable WANDB_MODE=offline"
            ) from error
        except wandb.errors.CommError as error:
            logger.info("Weights & Biases cannot be reached: %s", _first_line(error))  # later, opening the run may
    if cfg.LOGGING.MLFLOW:
        mlflow = _import("mlflow", "MlflowClient", key="MLFLOW")
        try:
            mlflow.MlflowClient(tracking_uri=cfg.LOGGING.MLFLOW)  # asks no server yet
        except Exception as error:
            raise InputError(
                f"LOGGING.MLFLOW is {cfg.LOGGING.MLFLOW!r}, which MLflow cannot use: name a server, as in "
                "http://localhost:5000; a database, as in sqlite:///mlflow.db, after pip install mlflow; or a folder, "
                "with the environment variable MLFLOW_ALLOW_FILE_STORE=true"
            ) from error


def _import(package: str, needed: str, key: str) -> Any:
    try:
        return getattr(importlib.import_module(package), needed) and importlib.import_module(package)
    except (ImportError, AttributeError) as error:  # wandb's folder of runs looks like a package without anything
        raise InputError(
            f"LOGGING.{key} is set, but the package {package} is not installed: pip install -e '.[{package}]', or "
            "leave the key empty"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> "MODEL.DETR.NUM_CLASSES" -> value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
