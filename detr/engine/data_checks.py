"""The checks of a config's data sets before training or evaluation, one call each."""

from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import print_instances_class_histogram
from detectron2.utils import comm

from detr.data.checks import check_classes, check_dicts, check_same_classes, check_same_task, load_dicts
from detr.data.image_checks import check_images, check_pngs
from detr.data.masks import check_segmentations
from detr.data.metadata import class_names, is_panoptic
from detr.data.panoptic_checks import check_panoptic_truth, check_segments
from detr.engine.coco_evaluation import choose_backend
from detr.engine.evaluation import check_measurable, check_panopticapi, is_detr, measures_pq
from detr.errors import InputError


def check_test_sets(cfg: CfgNode) -> None:
    """Checks ``cfg.DATASETS.TEST`` early, since evaluation comes last, perhaps after days.

    The main process checks; an InputError is raised on all ranks.
    """
    _on_main_process(partial(_check_test_sets, cfg))


def _check_test_sets(cfg: CfgNode) -> None:
    if cfg.DATASETS.TEST:
        choose_backend(cfg.TEST.COCO_BACKEND)
    for name in cfg.DATASETS.TEST:
        dicts = load_dicts([name], filter_empty=False)
        if is_detr(cfg):
            check_classes(name, cfg.MODEL.DETR.NUM_CLASSES)
            if is_panoptic(name):
                check_measurable(cfg, name)
                check_panoptic_truth(name, dicts, masks=cfg.MODEL.MASK_ON, maps=measures_pq(cfg, name))
            elif cfg.MODEL.MASK_ON:
                for x in dicts:
                    check_segmentations(x.get("annotations", []), x["file_name"])
        if measures_pq(cfg, name):
            check_panopticapi()
        if cfg.DATALOADER.CHECK_IMAGES:
            check_images(dicts, panoptic=is_detr(cfg) and is_panoptic(name))
            if is_detr(cfg) and measures_pq(cfg, name):
                check_pngs(dicts)


def load_training_sets(cfg: CfgNode) -> list[dict[str, Any]]:
    """The dicts of ``cfg.DATASETS.TRAIN``, unchecked. Raises InputError where there are none."""
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: name a data set there")
    return load_dicts(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


def check_training_sets(cfg: CfgNode) -> list[dict[str, Any]]:
    """Loads ``cfg.DATASETS.TRAIN`` and checks it. Returns its dicts.

    Every rank loads, since it needs the dicts. The main process checks; an InputError is raised on all ranks.
    """
    dicts = load_training_sets(cfg)
    _on_main_process(partial(_check_training_sets, cfg, dicts))
    return dicts


def _check_training_sets(cfg: CfgNode, dicts: list[dict[str, Any]]) -> None:
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


def _on_main_process(check: Callable[[], None]) -> None:
    """Runs a check on the main process only, and raises its error on all ranks, so that none waits for the others."""
    problem: Exception | None = None
    if comm.is_main_process():
        try:
            check()
        except Exception as error:
            problem = error
    problem = comm.all_gather(problem)[0]
    if problem is not None:
        raise problem


def _print_histogram(dicts: list[dict[str, Any]], names: list[str], panoptic: bool) -> None:
    """Logs how many objects each class has."""
    if panoptic:  # without "iscrowd", for crowds are objects here
        objects = [{"category_id": segment["category_id"]} for x in dicts for segment in x["segments_info"]]
    else:
        objects = [obj for x in dicts for obj in x.get("annotations", ())]
    # As if of one image: Detectron2 makes a numpy histogram for each, which takes 2 us a box.
    print_instances_class_histogram([{"annotations": objects}], names)
