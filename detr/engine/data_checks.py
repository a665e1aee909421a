"""What the data sets of a config are held to before any training time is spent, in one call each."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import print_instances_class_histogram

from detr.data.checks import check_classes, check_dicts, check_images, check_same_classes, check_same_task, load_dicts
from detr.data.masks import check_segmentations
from detr.data.metadata import class_names, is_panoptic
from detr.data.panoptic_checks import check_panoptic_truth, check_pngs, check_segments
from detr.engine.coco_evaluation import choose_backend
from detr.engine.evaluation import check_measurable, check_panopticapi, is_detr, measures_pq
from detr.errors import InputError


def check_test_sets(cfg: CfgNode) -> None:
    """Evaluation comes last, perhaps after days: its data sets are checked first. Raises InputError."""
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
    """Loads ``cfg.DATASETS.TRAIN`` and holds it to all checks. Raises InputError."""
    dicts = load_training_sets(cfg)
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
