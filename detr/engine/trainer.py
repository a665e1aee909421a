"""``Trainer``: Detectron2's DefaultTrainer with DETR's data, optimizer and schedule."""

import inspect
import logging
import re
import weakref
from functools import partial
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger

from detr.checkpoint import DetrCheckpointer
from detr.config_node import was_set
from detr.data.statistics import Row
from detr.engine import data_checks, solver, terminal
from detr.engine.data_order import DataOrder
from detr.engine.defaults import check_whole
from detr.engine.dry_run import evaluate_one_image
from detr.engine.early_stopping import StoppableLoop, check_patience
from detr.engine.folder_lock import lock_folder, unlock_folder
from detr.engine.hooks import evaluated_steps, finish_evaluation
from detr.engine.interruption import StopSignals
from detr.engine.progress import CountedTests
from detr.engine.registration import register_datasets
from detr.engine.run_writers import build_run_writers, check_logging
from detr.engine.schedule_checks import DataSizes, schedule_warnings
from detr.engine.start_screen import report_data, show_evaluation, show_training
from detr.engine.test_loader import build_evaluation_loader
from detr.engine.training_hooks import training_hooks
from detr.engine.training_loader import build_detr_loader, keep_for_loader
from detr.engine.training_step import build_step, check_precision
from detr.engine.validation_loss import build_loss_loader, check_loss
from detr.engine.weight_average import EMA, WeightAverage, check_decay
from detr.engine.written_configs import save_config
from detr.errors import InputError
from detr.evaluation import evaluators
from detr.evaluation.best_metric import check_best_metric, check_measured
from detr.evaluation.evaluators import is_detr
from detr.evaluation.results import results_table, results_text
from detr.random_state import seed_random
from detr.whole_files import name_disk_errors, remove_leftovers

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer, StoppableLoop):
    """Trains ``Detr`` and its subclasses as the paper does, and other meta-architectures as Detectron2 does.

    Every method may be overridden with the signature that DefaultTrainer documents.
    """

    checkpointer: DetectionCheckpointer
    loss_loaders: dict[str, Any]  # for TEST.LOSS, by the name of the test set
    _saved_evaluation: int | None = None  # of the checkpoint to resume from: steps before the last evaluation
    weight_average: WeightAverage | None = None  # for SOLVER.EMA_DECAY

    def __init__(self, cfg: CfgNode) -> None:
        """Loads and checks the data sets before any part is built. Raises InputError for bad input.

        The data sets are not checked by a subclass that builds its own loaders.
        """
        register_datasets(cfg)
        solver.check_batch_size(cfg)
        check_precision(cfg)
        check_decay(cfg)
        check_best_metric(cfg)
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
        scaled = self.auto_scale_workers(solver.schedule_in_iterations(cfg, num_images), comm.get_world_size())
        cfg = solver.keep_epochs(cfg, scaled, num_images)
        if dicts and is_detr(cfg) and comm.is_main_process():
            for line in schedule_warnings(cfg, DataSizes.measure(dicts)):
                logger.warning(line)
        self._test_images = sum(row["images"] for row in rows.values())
        check_patience(cfg)
        self.loss_loaders = {name: self.build_loss_loader(cfg, name) for name in cfg.DATASETS.TEST if cfg.TEST.LOSS}
        with keep_for_loader(cfg, dicts):
            self._assemble(cfg)

    def _assemble(self, cfg: CfgNode) -> None:
        """In place of DefaultTrainer's constructor, which asks for a GPU where there are several processes."""
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # as DefaultTrainer, for scripts that did not
        self.cfg = cfg
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self.data_order = DataOrder(cfg)
        self._trainer = build_step(cfg, model, self.data_order.build(self.build_train_loader), optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetrCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        if cfg.SOLVER.EMA_DECAY:
            self.weight_average = WeightAverage(self.checkpointer.model, cfg.SOLVER.EMA_DECAY)
            self.checkpointer.add_checkpointable(EMA, self.weight_average)
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.signals = StopSignals()
        self.register_hooks(self.build_hooks())

    @classmethod
    def _overrides(cls, *names: str) -> bool:
        """Whether a subclass has its own version of a method, be it an instance, class or static method."""
        return any(inspect.getattr_static(cls, name) is not vars(Trainer)[name] for name in names)

    def build_hooks(self) -> list[HookBase | None]:
        """As DefaultTrainer's, with TEST.LOSS, SOLVER.PATIENCE and LOGGING.HEALTH.

        Metrics are written after every evaluation too. Of a ``Detr`` fewer checkpoints stay on disk, and the best one
        does. After ``setup``, unless it left Detectron2's log on the terminal, there is a progress bar.
        """
        return training_hooks(self, super().build_hooks())

    def build_writers(self) -> list[EventWriter]:
        """As DefaultTrainer's, and those of LOGGING."""
        return [*super().build_writers(), *build_run_writers(self.cfg)]

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; warns where masks would be trained on a box model that is frozen and was never trained.

        Raises InputError where a checkpoint to resume from does not fit the model or the optimizer, whatever the
        meta-architecture is.
        """
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

        Ctrl-C and SIGTERM end it after the step, saved, with StoppedTraining, which is a SystemExit.

        Before the first step, one image of each test set is evaluated, unless a subclass has its own ``test``.
        """
        cfg = self.cfg
        data_checks.on_main_process(partial(lock_folder, cfg.OUTPUT_DIR))  # for scripts without `setup`
        if comm.is_main_process():  # before the lock, another training may be writing there
            remove_leftovers(cfg.OUTPUT_DIR)
        try:
            self._train()
        finally:
            unlock_folder(cfg.OUTPUT_DIR)
        return getattr(self, "_last_eval_results", None)

    def _train(self) -> None:
        cfg = self.cfg
        show_training(cfg, self.model, self.checkpointer, self.start_iter, self._test_images)
        if self.start_iter < self.max_iter and cfg.DATASETS.TEST and cfg.TEST.DRY_RUN and not self._overrides("test"):
            names = evaluate_one_image(type(self), cfg, self.model)
            data_checks.on_main_process(partial(check_measured, cfg, names))
        with self.signals:
            super().train()  # type: ignore[call-arg]

    def before_train(self) -> None:
        super().before_train()
        finish_evaluation(self, self._hooks, self._saved_evaluation)

    def before_step(self) -> None:
        # Whatever was computed before, such as an evaluation, a step has the same random numbers.
        seed_random(self.data_order.seed, comm.get_rank(), self.iter)
        super().before_step()

    def state_dict(self) -> dict[str, Any]:
        """As DefaultTrainer's, with the order of the training images and the last evaluation."""
        state: dict[str, Any] = super().state_dict()
        iterator, steps = getattr(self._trainer, "_data_loader_iter_obj", None), self.iter + 1 - self.start_iter
        state["data_order"] = self.data_order.state_dict(iterator, steps)
        return {**state, "evaluated": evaluated_steps(self._hooks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.data_order.resume(state_dict.get("data_order"), self.build_train_loader)
        self._trainer._data_loader_iter_obj = None  # a batch that was looked at is none of the training's
        self._saved_evaluation = state_dict.get("evaluated")

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
        return build_detr_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Of a ``Detr``, with batches of images of one size, by TEST.IMS_PER_BATCH."""
        if not is_detr(cfg):
            return build_detection_test_loader(cfg, dataset_name)
        return build_evaluation_loader(cfg, dataset_name)

    @classmethod
    def build_loss_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """For TEST.LOSS: batches of a test set as ``Detr`` takes them in training; see ``build_loss_loader``."""
        return build_loss_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """By SOLVER.OPTIMIZER; for another meta-architecture Detectron2's SGD, unless that key was set."""
        if is_detr(cfg) or was_set(cfg.SOLVER, "OPTIMIZER"):
            return solver.build_optimizer(cfg, model)
        if cfg.SOLVER.LAYER_DECAY != 1:
            raise InputError("SOLVER.LAYER_DECAY is not for Detectron2's own optimizer: set SOLVER.OPTIMIZER too")
        return super().build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Detectron2's. Raises InputError as ``check_schedule``."""
        solver.check_schedule(cfg)
        return super().build_lr_scheduler(cfg, optimizer)

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
        evaluators.warn_of_other_classes(cfg, checkpointer.model)
        results = cls.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """As DefaultTrainer's; the numbers of all data sets and evaluators are logged as one table at the end."""
        # Called as DefaultTrainer's own method is, with the class that it asks for loaders replaced.
        test = vars(DefaultTrainer)["test"].__func__
        with name_disk_errors(cfg.OUTPUT_DIR):
            results: dict[str, Any] = test(CountedTests(cls), cfg, model, evaluators)
        if comm.is_main_process() and results:
            names = cfg.DATASETS.TEST
            by_set = {names[0]: results} if len(names) == 1 else results
            logger.info("All results, in percent:\n%s", results_table(by_set))
            terminal.show(results_text(by_set))
        return results

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return evaluators.build_evaluator(cfg, dataset_name)


def _reason(error: FloatingPointError) -> str:
    """Detectron2 names no loss in its first line, but prints them all, by name, in the second."""
    text = str(error)
    first, _, rest = text.partition("\n")
    broken = re.findall(r"'(\w+)': (?:np\.\w+\()?-?(?:nan|inf)", rest)
    return f"{first.rstrip('!')}; not finite: {', '.join(broken)}" if broken else first
