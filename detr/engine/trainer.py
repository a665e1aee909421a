"""``Trainer``: Detectron2's DefaultTrainer with DETR's data, optimiser and schedule."""

import functools
import logging
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    print_instances_class_histogram,
)
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from detr.checkpoint import DetrCheckpointer
from detr.data.checks import check_classes, check_dicts, check_images, check_same_classes, check_same_task, load_dicts
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.masks import check_segmentations
from detr.data.metadata import class_names, is_panoptic
from detr.data.panoptic_checks import check_panoptic_truth, check_pngs, check_segments
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine import evaluation, solver
from detr.engine.coco_evaluation import choose_backend
from detr.engine.evaluation import is_detr
from detr.errors import InputError

logger = logging.getLogger(__name__)


def check_test_sets(cfg: CfgNode) -> None:
    """Evaluation comes last, perhaps after days: its data sets are checked first. Raises InputError."""
    if cfg.DATASETS.TEST:
        choose_backend(cfg.TEST.COCO_BACKEND)
    for name in cfg.DATASETS.TEST:
        dicts = load_dicts([name], filter_empty=False)
        if is_detr(cfg):
            check_classes(name, cfg.MODEL.DETR.NUM_CLASSES)
            if is_panoptic(name):
                evaluation.check_measurable(cfg, name)
                check_panoptic_truth(name, dicts, masks=cfg.MODEL.MASK_ON, maps=evaluation.measures_pq(cfg, name))
            elif cfg.MODEL.MASK_ON:
                for x in dicts:
                    check_segmentations(x.get("annotations", []), x["file_name"])
        if evaluation.measures_pq(cfg, name):
            evaluation.check_panopticapi()
        if cfg.DATALOADER.CHECK_IMAGES:
            check_images(dicts, panoptic=is_detr(cfg) and is_panoptic(name))
            if is_detr(cfg) and evaluation.measures_pq(cfg, name):
                check_pngs(dicts)


def check_training_sets(cfg: CfgNode) -> list[dict[str, Any]]:
    """Loads ``cfg.DATASETS.TRAIN`` and holds it to all checks. Raises InputError."""
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: name a data set there")
    dicts = load_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    panoptic = is_detr(cfg) and is_panoptic(cfg.DATASETS.TRAIN[0])
    if is_detr(cfg):
        for name in cfg.DATASETS.TRAIN:
            check_classes(name, cfg.MODEL.DETR.NUM_CLASSES)
        check_same_task(cfg.DATASETS.TRAIN)
        check_same_classes([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])
        if panoptic:
            check_segments(dicts, cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.NUM_OBJECT_QUERIES)
        else:
            check_dicts(dicts, cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DETR.NUM_OBJECT_QUERIES, cfg.MODEL.MASK_ON)
        names = class_names(cfg.DATASETS.TRAIN[0])
        if names:
            _print_histogram(dicts, names, panoptic)
    if cfg.DATALOADER.CHECK_IMAGES:
        check_images(dicts, panoptic)
    return dicts


def _print_histogram(dicts: list[dict[str, Any]], names: list[str], panoptic: bool) -> None:
    if panoptic:  # without "iscrowd", for crowds are objects here
        dicts = [{"annotations": [{"category_id": s["category_id"]} for s in x["segments_info"]]} for x in dicts]
    print_instances_class_histogram(dicts, names)


class Trainer(DefaultTrainer):
    """Trains ``Detr`` as the paper does, and other meta-architectures as Detectron2 does."""

    def __init__(self, cfg: CfgNode) -> None:
        """Loads and checks the data sets before any part is built. Raises InputError for bad input."""
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        solver.check_batch_size(cfg)
        check_test_sets(cfg)
        dicts = check_training_sets(cfg)
        cfg = solver.schedule_in_iterations(cfg, len(dicts))
        # DefaultTrainer's constructor calls build_train_loader(cfg). The dicts are at hand already, and to
        # read COCO's annotations twice would cost half a minute.
        self.build_train_loader = functools.partial(type(self).build_train_loader, dataset=dicts)  # type: ignore[method-assign]
        super().__init__(cfg)
        # Gradients of the last step need not lie beside the activations of this one.
        self._trainer.zero_grad_before_forward = True
        del self.build_train_loader  # the loader holds its own, serialised copy of the dicts

    def build_hooks(self) -> list[HookBase | None]:
        # The hooks are handed the checkpointer, so that this is the place to put ours in.
        self.checkpointer = DetrCheckpointer(self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        return super().build_hooks()

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; warns where masks would be trained on a DETR that is frozen and was never trained."""
        super().resume_or_load(resume)
        if getattr(self.checkpointer.model, "freeze_detr", False):
            fresh = [line for line in self.checkpointer.fresh if not line.startswith("mask_head")]
            if fresh:
                logger.warning(
                    "the DETR that the masks are trained on is frozen, and not trained: %s. Name a trained one in "
                    "MODEL.WEIGHTS, or set MODEL.DETR.FREEZE_DETR False to train it too",
                    "; ".join(fresh),
                )

    def train(self) -> dict[str, Any] | None:
        """Trains, and returns the last evaluation's results where there are any."""
        super().train()
        return getattr(self, "_last_eval_results", None)

    def run_step(self) -> None:
        """Raises FloatingPointError, in one line, where a loss is not finite."""
        try:
            super().run_step()
        except FloatingPointError as error:
            reason = str(error).splitlines()[0]
            raise FloatingPointError(
                f"the training has diverged at iteration {self.iter} ({reason}). Lower SOLVER.BASE_LR, check that "
                "SOLVER.CLIP_GRADIENTS is on, and go on from the last checkpoint with --resume"
            ) from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, dataset: list[dict[str, Any]] | None = None) -> Any:
        """dataset: dicts that were loaded already; None loads ``cfg.DATASETS.TRAIN``."""
        if not is_detr(cfg):
            return build_detection_train_loader(cfg)  # keypoints, proposals: Detectron2 loads what it needs
        mapper = DetrPanopticMapper if is_panoptic(cfg.DATASETS.TRAIN[0]) else DetrDatasetMapper
        return build_detection_train_loader(cfg, mapper=mapper(cfg, is_train=True), dataset=dataset)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        mapper = DetrDatasetMapper(cfg, is_train=False) if is_detr(cfg) else None
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return solver.build_optimizer(cfg, model) if is_detr(cfg) else super().build_optimizer(cfg, model)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """As DefaultTrainer's; the numbers of all data sets and evaluators are logged as one table at the end."""
        results: dict[str, Any] = super().test(cfg, model, evaluators)
        if comm.is_main_process() and results:
            names = cfg.DATASETS.TEST
            table = evaluation.results_table({names[0]: results} if len(names) == 1 else results)
            logger.info("All results, in percent:\n%s", table)
        return results

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return evaluation.build_evaluator(cfg, dataset_name)
