"""``Trainer``: Detectron2's DefaultTrainer with DETR's data, optimizer and schedule."""

import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from detr.checkpoint import DetrCheckpointer
from detr.config_node import was_set
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.loading import load_dataset
from detr.data.metadata import is_panoptic
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.data.statistics import Row
from detr.engine import data_checks, evaluation, samplers, solver, terminal
from detr.engine.defaults import check_whole
from detr.engine.dry_run import evaluate_one_image
from detr.engine.early_stopping import EarlyStopping, StoppableLoop, check_patience
from detr.engine.evaluation import is_detr
from detr.engine.health import HealthHook
from detr.engine.hooks import BestCheckpointer, EvalHook, PeriodicCheckpointer, PeriodicWriter
from detr.engine.progress import CountedTests, TrainingProgress
from detr.engine.registration import register_datasets
from detr.engine.results import results_table, results_text
from detr.engine.run_writers import build_run_writers, check_logging
from detr.engine.schedule_checks import DataSizes, schedule_warnings
from detr.engine.start_screen import report_data, show_evaluation, show_training
from detr.engine.validation_loss import build_loss_loader, check_loss, validation_losses
from detr.engine.written_configs import save_config

logger = logging.getLogger(__name__)

# The training set while a Trainer is built: (DATASETS.TRAIN, dicts). Reading COCO twice would cost half a minute.
_loaded: ContextVar[tuple[Any, list[dict[str, Any]]] | None] = ContextVar("loaded", default=None)


class Trainer(DefaultTrainer, StoppableLoop):
    """Trains ``Detr`` and its subclasses as the paper does, and other meta-architectures as Detectron2 does.

    Every method may be overridden with the signature that DefaultTrainer documents.
    """

    checkpointer: DetectionCheckpointer

    def __init__(self, cfg: CfgNode) -> None:
        """Loads and checks the data sets before any part is built. Raises InputError for bad input.

        The data sets are not checked by a subclass that builds its own loaders.
        """
        register_datasets(cfg)
        solver.check_batch_size(cfg)
        check_loss(cfg)
        data_checks.on_main_process(partial(check_logging, cfg))
        self._given_cfg = cfg
        rows: dict[str, Row] = {}
        if not self._overrides("build_test_loader", "test"):
            rows = data_checks.check_test_sets(cfg, own_evaluator=self._overrides("build_evaluator"))
        dicts: list[dict[str, Any]] = []
        num_images = 0
        if not self._overrides("build_train_loader"):
            dicts = data_checks.check_training_sets(cfg, rows)
            num_images = len(dicts)
        else:
            report_data(rows)
            if solver.needs_data_size(cfg):
                num_images = data_checks.count_training_images(cfg)
        cfg = solver.schedule_in_iterations(cfg, num_images)
        if dicts and is_detr(cfg) and comm.is_main_process():
            for line in schedule_warnings(cfg, DataSizes.measure(dicts)):
                logger.warning(line)
        self._test_images = sum(row["images"] for row in rows.values())
        check_patience(cfg)
        self._loss_loaders = {name: self.build_loss_loader(cfg, name) for name in cfg.DATASETS.TEST if cfg.TEST.LOSS}
        with _keep_for_loader(cfg, dicts):
            super().__init__(cfg)
        # Saves memory: the gradients of the last step are freed before the forward pass.
        self._trainer.zero_grad_before_forward = True

    @classmethod
    def _overrides(cls, *names: str) -> bool:
        """Whether a subclass has its own version of a method, be it an instance, class or static method."""
        return any(inspect.getattr_static(cls, name) is not vars(Trainer)[name] for name in names)

    def build_hooks(self) -> list[HookBase | None]:
        """As DefaultTrainer's, with TEST.LOSS, SOLVER.PATIENCE and LOGGING.HEALTH.

        Metrics are written after every evaluation too. Of a ``Detr`` fewer checkpoints stay on disk, and the best one
        does. After ``setup``, unless it left Detectron2's log on the terminal, there is a progress bar.
        """
        cfg = self.cfg
        found = [x for hook in super().build_hooks() for x in self._in_place_of(hook)]
        if terminal.is_quiet():
            found.append(TrainingProgress(cfg, evaluation.main_metric(cfg) if cfg.DATASETS.TEST else None))
        return found

    def _in_place_of(self, hook: Any) -> list[HookBase | None]:
        cfg, period = self.cfg, self.cfg.TEST.EVAL_PERIOD
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
            return [EvalHook(period, hook._func), *self._hooks_after_evaluation()]
        if type(hook) is hooks.PeriodicWriter:
            writer = PeriodicWriter(hook._writers, hook._period, evaluation_period=period)
            # As the writer, in the main process only.
            return [HealthHook(self.model), writer] if cfg.LOGGING.HEALTH and is_detr(cfg) else [writer]
        return [hook]

    def _hooks_after_evaluation(self) -> list[HookBase]:
        cfg, period, found = self.cfg, self.cfg.TEST.EVAL_PERIOD, list[HookBase]()
        if self._loss_loaders:
            found.append(EvalHook(period, partial(validation_losses, self.model, self._loss_loaders)))
        if not cfg.DATASETS.TEST or not period:
            return found
        metric = evaluation.main_metric(cfg)
        if comm.is_main_process() and is_detr(cfg):
            found.append(BestCheckpointer(period, self.checkpointer, metric))
        if cfg.SOLVER.PATIENCE:
            found.append(
                EarlyStopping(
                    patience=cfg.SOLVER.PATIENCE, period=period, metric=metric, checkpointer=self.checkpointer
                )
            )
        return found

    def build_writers(self) -> list[EventWriter]:
        """As DefaultTrainer's, and those of LOGGING."""
        return [*super().build_writers(), *build_run_writers(self.cfg)]

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; warns where masks would be trained on a box model that is frozen and was never trained.

        Raises InputError where a checkpoint to resume from does not fit the model or the optimizer, whatever the
        meta-architecture is.
        """
        if type(self.checkpointer) is DetectionCheckpointer:  # checks nothing
            old = self.checkpointer
            self.checkpointer = DetrCheckpointer(
                old.model, old.save_dir, save_to_disk=old.save_to_disk, **old.checkpointables
            )
        super().resume_or_load(resume)
        checkpointer = self.checkpointer
        if resume and checkpointer.has_checkpoint():
            save_config(self._given_cfg, "resume")
        if isinstance(checkpointer, DetrCheckpointer) and getattr(checkpointer.model, "freeze_detr", False):
            untrained = [line for line in checkpointer.reinitialized if not line.startswith("mask_head")]
            if untrained:
                logger.warning(
                    "the box model that the masks are trained on is frozen, and not trained: %s. Name a trained one in "
                    "MODEL.WEIGHTS, or set MODEL.DETR.FREEZE_DETR False to train it too",
                    "; ".join(untrained),
                )

    def train(self) -> dict[str, Any] | None:  # type: ignore[override]  # DefaultTrainer's signature
        """Trains, and returns the last evaluation's results where there are any.

        Before the first step, one image of each test set is evaluated, unless a subclass has its own ``test``.
        """
        cfg = self.cfg
        show_training(cfg, self.model, self.checkpointer, self.start_iter, self._test_images)
        if self.start_iter < self.max_iter and cfg.DATASETS.TEST and cfg.TEST.DRY_RUN and not self._overrides("test"):
            evaluate_one_image(type(self), cfg, self.model)
        super().train()  # type: ignore[call-arg]
        return getattr(self, "_last_eval_results", None)

    def run_step(self) -> None:
        """Raises FloatingPointError, in one line, where a loss is not finite; it names the losses."""
        try:
            super().run_step()
        except FloatingPointError as error:
            # A resumed training would go on with the checkpoint's learning rate.
            again = "start again"
            if self.checkpointer.has_checkpoint():
                last = self.checkpointer.get_checkpoint_file()
                again = f"start anew with MODEL.WEIGHTS {last} and another OUTPUT_DIR"
            raise FloatingPointError(
                f"the training has diverged at iteration {self.iter} ({_reason(error)}). Lower SOLVER.BASE_LR, check "
                f"that SOLVER.CLIP_GRADIENTS is on, and {again}"
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """With the mapper of the data set's kind: boxes and masks, or panoptic segments."""
        if not is_detr(cfg):
            return build_detection_train_loader(cfg)  # keypoints, proposals: Detectron2 loads what it needs
        panoptic = is_panoptic(cfg.DATASETS.TRAIN[0])
        mapper = (DetrPanopticMapper if panoptic else DetrDatasetMapper)(cfg, is_train=True)
        loaded = _loaded.get()
        dicts = loaded[1] if loaded and loaded[0] == _source(cfg) else data_checks.load_training_sets(cfg)
        sampler = samplers.panoptic_sampler(cfg, dicts) if panoptic else None
        return build_detection_train_loader(cfg, mapper=mapper, dataset=dicts, sampler=sampler)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        if not is_detr(cfg):
            return build_detection_test_loader(cfg, dataset_name)
        mapper, workers = DetrDatasetMapper(cfg, is_train=False), cfg.DATALOADER.NUM_WORKERS
        return build_detection_test_loader(load_dataset(dataset_name), mapper=mapper, num_workers=workers)

    @classmethod
    def build_loss_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """For TEST.LOSS: batches of a test set as ``Detr`` takes them in training; see ``build_loss_loader``."""
        return build_loss_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """By SOLVER.OPTIMIZER; for another meta-architecture Detectron2's SGD, unless that key was set."""
        if is_detr(cfg) or was_set(cfg.SOLVER, "OPTIMIZER"):
            return solver.build_optimizer(cfg, model)
        return super().build_optimizer(cfg, model)

    @classmethod
    def evaluate(cls, cfg: CfgNode, resume: bool = False) -> dict[str, Any]:
        """Builds the model, loads MODEL.WEIGHTS, or with ``resume`` the last checkpoint, and evaluates it.

        Raises InputError for bad data sets and for weights that are not a whole model's. Exits with status 1 where
        the results are not those of TEST.EXPECTED_RESULTS.
        """
        register_datasets(cfg)
        if not cls._overrides("build_test_loader", "test"):
            report_data(data_checks.check_test_sets(cfg, own_evaluator=cls._overrides("build_evaluator")))
        model = cls.build_model(cfg)
        checkpointer = DetrCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
        check_whole(checkpointer.reinitialized)
        show_evaluation(cfg, model, checkpointer, resume)
        evaluation.warn_of_other_classes(cfg, checkpointer.model)
        results = cls.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """As DefaultTrainer's; the numbers of all data sets and evaluators are logged as one table at the end."""
        # Called as DefaultTrainer's own method is, with the class that it asks for loaders replaced.
        test = vars(DefaultTrainer)["test"].__func__
        results: dict[str, Any] = test(CountedTests(cls), cfg, model, evaluators)
        if comm.is_main_process() and results:
            names = cfg.DATASETS.TEST
            by_set = {names[0]: results} if len(names) == 1 else results
            logger.info("All results, in percent:\n%s", results_table(by_set))
            terminal.show(results_text(by_set))
        return results

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return evaluation.build_evaluator(cfg, dataset_name)


def _source(cfg: CfgNode) -> tuple[Any, ...]:
    return tuple(cfg.DATASETS.TRAIN), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS


@contextmanager
def _keep_for_loader(cfg: CfgNode, dicts: list[dict[str, Any]]) -> Iterator[None]:
    """Inside, ``build_train_loader`` need not load the training set; afterwards the loader has its own copy."""
    token = _loaded.set((_source(cfg), dicts) if dicts else None)
    try:
        yield
    finally:
        _loaded.reset(token)


def _reason(error: FloatingPointError) -> str:
    """Detectron2 names no loss in its first line, but prints them all, by name, in the second."""
    text = str(error)
    first, _, rest = text.partition("\n")
    broken = re.findall(r"'(\w+)': (?:np\.\w+\()?-?(?:nan|inf)", rest)
    return f"{first.rstrip('!')}; not finite: {', '.join(broken)}" if broken else first
