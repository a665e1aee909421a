"""One image of each test set is evaluated before the first step: what is wrong shows then, not after days."""

import contextlib
import copy
import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
)
from detectron2.utils import comm
from detectron2.utils import logger as detectron2_logger
from detectron2.utils.file_io import PathManager

from detr.errors import InputError
from detr.random_state import preserved

logger = logging.getLogger(__name__)


def evaluate_one_image(trainer: type[DefaultTrainer], cfg: CfgNode, model: torch.nn.Module) -> set[str]:
    """Evaluates the model as ``trainer`` will, on one image a rank of each of ``cfg.DATASETS.TEST``.

    Returns the names of the results, as they will be in the event storage; on the main process only.

    trainer: the class; its ``build_test_loader`` and ``build_evaluator`` are called with a copy of cfg whose OUTPUT_DIR
        is a temporary folder

    Nothing is logged but one line, and nothing is changed: neither the model's modes nor random numbers, metadata or
    files. Any error is raised as it is, after a line that names the data set.
    """
    start = time.perf_counter()
    # One folder for all ranks, since one may read what another has written.
    folder: str = comm.all_gather(tempfile.mkdtemp(prefix="detr-dry-run-") if comm.is_main_process() else "")[0]
    os.makedirs(folder, exist_ok=True)  # on other machines
    one_image = _OneImage(trainer, folder)
    evaluate = partial(vars(DefaultTrainer)["test"].__func__, one_image, _with_folder(cfg, folder), model)
    try:
        with unchanged(model, cfg.DATASETS.TEST), quiet():
            # A training of no step: its hook calls the evaluation and checks the results as in a real one.
            loop = TrainerBase()
            loop.register_hooks([hooks.EvalHook(0, evaluate)])
            loop.train(0, 0)
    except InputError:
        raise
    except Exception as error:
        logger.error(
            "the evaluation of the data set %s fails in a dry run before training (%s), as it would have after %d "
            "iterations; TEST.DRY_RUN False trains without a dry run",
            one_image.dataset_name,
            type(error).__name__,
            cfg.TEST.EVAL_PERIOD or cfg.SOLVER.MAX_ITER,
        )
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    logger.info("Evaluated one image in a dry run, in %.1f s: the evaluation works", time.perf_counter() - start)
    return set(loop.storage.latest())


def _with_folder(cfg: CfgNode, folder: str) -> CfgNode:
    dry_cfg = cfg.clone()
    dry_cfg.defrost()
    dry_cfg.OUTPUT_DIR, dry_cfg.DATALOADER.NUM_WORKERS = folder, 0
    if cfg.is_frozen():
        dry_cfg.freeze()
    return dry_cfg


class _OneImage:
    """In the place of the trainer's class: its test loaders yield one image, its evaluators expect no others."""

    def __init__(self, trainer: type[DefaultTrainer], folder: str) -> None:
        """folder: for restricted ground truth"""
        self.trainer = trainer
        self.folder = folder
        self.dataset_name = ""  # the one that is evaluated
        self.image_ids: Collection[Any] = ()  # of all ranks

    def build_test_loader(self, cfg: CfgNode, dataset_name: str) -> list[Any]:
        self.dataset_name = dataset_name
        # Detectron2's loaders yield lists of images, of one image if nobody changed that.
        first = next(iter(self.trainer.build_test_loader(cfg, dataset_name)), None)
        batches = [] if first is None else [first[:1] if isinstance(first, list) else first]
        ids = [x.get("image_id") for batch in batches for x in batch if isinstance(x, Mapping)]
        self.image_ids = {image_id for on_rank in comm.all_gather(ids) for image_id in on_rank}
        return batches

    def build_evaluator(self, cfg: CfgNode, dataset_name: str) -> Any:
        evaluator = self.trainer.build_evaluator(cfg, dataset_name)
        _restrict_truth(evaluator, self.image_ids, self.folder)
        return evaluator


def _restrict_truth(evaluator: Any, image_ids: Collection[Any], folder: str) -> None:
    """Lets Detectron2's evaluators expect these images only: some fail where others are missing, some take minutes."""
    if isinstance(evaluator, DatasetEvaluators):
        evaluator = evaluator._evaluators
    if isinstance(evaluator, (list, tuple)):
        for part in evaluator:
            _restrict_truth(part, image_ids, folder)
    elif isinstance(evaluator, COCOEvaluator):
        evaluator._coco_api = _restricted(evaluator._coco_api, image_ids, "createIndex")
    elif isinstance(evaluator, LVISEvaluator):
        evaluator._lvis_api = _restricted(evaluator._lvis_api, image_ids, "_create_index")
    elif isinstance(evaluator, COCOPanopticEvaluator):
        evaluator._metadata = copy.copy(evaluator._metadata)
        with PathManager.open(evaluator._metadata.panoptic_json) as file:
            truth = _of_images(json.load(file), image_ids)
        if not _has_both_kinds(truth):
            # panopticapi divides by the numbers of things and of stuff. Maps are encoded all the same.
            evaluator.evaluate = getattr(evaluator, "collect", dict)
        path = os.path.join(folder, f"{evaluator._metadata.name}_truth_{comm.get_rank()}.json")
        with open(path, "w") as file:
            json.dump(truth, file)
        vars(evaluator._metadata)["panoptic_json"] = path  # it refuses to be given another value
    elif isinstance(evaluator, (CityscapesInstanceEvaluator, CityscapesSemSegEvaluator)):
        # Their package looks for predictions of the whole data set: all but the counting is tried.
        evaluator.evaluate = lambda: evaluator._working_dir.cleanup()


def _restricted(api: Any, image_ids: Collection[Any], index: str) -> Any:
    """A copy of a COCO or LVIS object with these images; index: its method that sorts annotations."""
    api = copy.copy(api)
    api.dataset = _of_images(api.dataset, image_ids)
    getattr(api, index)()
    return api


def _of_images(dataset: dict[str, Any], image_ids: Collection[Any]) -> dict[str, Any]:
    """The part of a COCO file's content that is about these images."""
    found = {**dataset, "images": [x for x in dataset["images"] if x["id"] in image_ids]}
    if "annotations" in dataset:
        found["annotations"] = [x for x in dataset["annotations"] if x["image_id"] in image_ids]
    return found


def _has_both_kinds(panoptic: dict[str, Any]) -> bool:
    """Whether a panoptic JSON's content has a segment of a thing and one of stuff, crowds aside."""
    isthing = {category["id"]: bool(category["isthing"]) for category in panoptic["categories"]}
    segments = [segment for annotation in panoptic["annotations"] for segment in annotation["segments_info"]]
    return {isthing[segment["category_id"]] for segment in segments if not segment["iscrowd"]} == {True, False}


@contextlib.contextmanager
def unchanged(model: torch.nn.Module, dataset_names: Collection[str]) -> Iterator[None]:
    """Restores what an evaluation changes: modes of modules, random states, metadata, counts of logged lines."""
    modes = [(module, module.training) for module in model.modules()]
    # Detectron2 writes a COCO file for a set of plain dicts, and its path into the metadata.
    metadata = {name: dict(vars(MetadataCatalog.get(name))) for name in dataset_names if name in MetadataCatalog}
    logged = dict(detectron2_logger._LOG_COUNTER)
    try:
        gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with preserved(), torch.random.fork_rng(gpus):
            yield
    finally:
        for module, training in modes:
            module.training = training
        for name, attributes in metadata.items():
            vars(MetadataCatalog.get(name)).clear()
            vars(MetadataCatalog.get(name)).update(attributes)
        detectron2_logger._LOG_COUNTER.clear()
        detectron2_logger._LOG_COUNTER.update(logged)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither prints nor log lines below an error are shown: warnings will come in the real evaluation."""
    level = logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
