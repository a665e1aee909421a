"""The checks of a config's data sets before training or evaluation, one call each."""

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import print_instances_class_histogram
from detectron2.utils import comm

from detr.data.checks import check_classes, check_dicts, check_same_classes, check_same_task
from detr.data.ground_truth import as_detections, check_same_images, images_of_empty_masks, warn_of_other_objects
from detr.data.image_checks import check_images, check_pngs
from detr.data.loading import check_unique_images, load_as_detectron2, load_dataset, load_dicts
from detr.data.metadata import class_names, is_panoptic
from detr.data.panoptic_checks import check_panoptic_truth, check_segments
from detr.data.statistics import (
    Row,
    box_statistics,
    segment_statistics,
    warn_of_surplus,
    warn_of_unseen_classes,
)
from detr.engine.dry_run import quiet
from detr.engine.samplers import check_sampler
from detr.engine.start_screen import report_data
from detr.errors import InputError
from detr.evaluation.coco import choose_backend
from detr.evaluation.evaluators import (
    TASK_NAMES,
    check_evaluator,
    check_measurable,
    instance_evaluator,
    is_detr,
    measures_pq,
)

PERFECT = 99.9  # percent, without the error of summing
SAMPLE = 1000  # images

logger = logging.getLogger(__name__)


def check_test_sets(cfg: CfgNode, own_evaluator: bool = False) -> dict[str, Row]:
    """Checks ``cfg.DATASETS.TEST`` early, since evaluation comes last, perhaps after days. Returns their statistics.

    own_evaluator: whether the user's evaluator is left to know what it needs

    The main process checks; an InputError is raised on all ranks.
    """
    return on_main_process(partial(_check_test_sets, cfg, own_evaluator)) or {}


def _check_test_sets(cfg: CfgNode, own_evaluator: bool) -> dict[str, Row]:
    if cfg.DATASETS.TEST and not own_evaluator:
        choose_backend(cfg.TEST.COCO_BACKEND)
    rows = {}
    for name in cfg.DATASETS.TEST:
        if not is_detr(cfg):
            dicts = load_as_detectron2([name], filter_empty=False)
        else:
            dicts = load_dataset(name)
            check_classes(name, cfg.MODEL.DETR.NUM_CLASSES)
            check_unique_images(name, dicts)
            rows[name] = _check_contents(cfg, name, dicts)
        if not own_evaluator:
            if is_detr(cfg):
                _check_truth(cfg, name, dicts)
            check_evaluator(cfg, name)
        if cfg.DATALOADER.CHECK_IMAGES:
            check_images(dicts, panoptic=is_detr(cfg) and is_panoptic(name))
            if is_detr(cfg) and measures_pq(cfg, name) and not own_evaluator:
                check_pngs(dicts)
    return rows


def load_training_sets(cfg: CfgNode) -> list[dict[str, Any]]:
    """The dicts of ``cfg.DATASETS.TRAIN``, their labels unchecked. Raises InputError where there are none."""
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty: name a data set there")
    load = load_dicts if is_detr(cfg) else load_as_detectron2
    return load(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


def count_training_images(cfg: CfgNode) -> int:
    """For a schedule in epochs, where a loader of the user's own knows what is in the images."""
    return len(load_as_detectron2(cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS))


def check_training_sets(cfg: CfgNode, test_rows: dict[str, Row] | None = None) -> list[dict[str, Any]]:
    """Loads ``cfg.DATASETS.TRAIN`` and checks it. Returns its dicts.

    test_rows: statistics of the test sets, for the table that is logged

    Every rank loads, since it needs the dicts. The main process checks; an InputError is raised on all ranks.
    """
    dicts = load_training_sets(cfg)
    on_main_process(partial(_check_training_sets, cfg, dicts, test_rows or {}))
    return dicts


def _check_training_sets(cfg: CfgNode, dicts: list[dict[str, Any]], test_rows: dict[str, Row]) -> None:
    names = cfg.DATASETS.TRAIN
    panoptic = is_detr(cfg) and is_panoptic(names[0])
    if is_detr(cfg):
        check_same_task(names)
        check_sampler(cfg)
        for name in names:
            check_classes(name, cfg.MODEL.DETR.NUM_CLASSES)
        check_same_classes([*names, *cfg.DATASETS.TEST])
        title = ", ".join(names)
        row = _check_contents(cfg, title, dicts)
        if not row["objects"]:
            raise InputError(f"the training set {title} has no object at all: check the annotations of its files")
        key = "segments_info" if panoptic else "annotations"
        objects = [[obj for obj in x[key] if panoptic or not obj.get("iscrowd")] for x in dicts]
        warn_of_surplus(dicts, list(map(len, objects)), cfg.MODEL.DETR.NUM_OBJECT_QUERIES)
        report_data({title: row, **test_rows})
        classes = class_names(names[0])
        if classes:
            warn_of_unseen_classes(dicts, classes)
            _print_histogram(dicts, classes, panoptic)
    if cfg.DATALOADER.CHECK_IMAGES:
        check_images(dicts, panoptic)
        if panoptic:  # all PNGs would take minutes; the mapper checks them
            check_pngs([x for x in dicts if not x["segments_info"]])


def _check_contents(cfg: CfgNode, title: str, dicts: list[dict[str, Any]]) -> Row:
    """Checks what the images of a training or test set hold; returns its statistics."""
    name, num_classes = title.split(", ")[0], cfg.MODEL.DETR.NUM_CLASSES
    classes = class_names(name)
    if is_panoptic(name):
        check_segments(dicts, num_classes, title)
        return segment_statistics(dicts, classes)
    if without := [x["file_name"] for x in dicts if "annotations" not in x]:
        raise InputError(
            f"{without[0]} of the data set {title} has 'segments_info' and no 'annotations', and the metadata are not "
            "those of a panoptic set: register it with detectron2.data.datasets.register_coco_panoptic"
        )
    check_dicts(title, dicts, num_classes, cfg.MODEL.MASK_ON)
    return box_statistics(title, dicts, classes, cfg.MODEL.MASK_ON)


def _check_truth(cfg: CfgNode, name: str, dicts: list[dict[str, Any]]) -> None:
    """Holds the ground truth of a test set to itself: AP of perfect detections is 100, or the evaluation is wrong."""
    if is_panoptic(name):
        check_measurable(cfg, name)
        check_panoptic_truth(name, dicts, masks=cfg.MODEL.MASK_ON, maps=measures_pq(cfg, name))
    with quiet():
        evaluator = instance_evaluator(cfg, name, distributed=False)
        truth = None if evaluator is None else evaluator.truth
        if evaluator is None or truth is None:
            return
        detections = as_detections(truth)
        evaluator.reset()
        evaluator._predictions = [{"image_id": x["image_id"], "instances": [x]} for x in detections]
        # pycocotools compares every image with every class: of a large set it gets a part.
        images = None if evaluator.backend == "hotcoco" else [x["image_id"] for x in dicts[:SAMPLE]]
        results = evaluator.evaluate(img_ids=images)
    check_same_images(name, dicts, truth)
    if not is_panoptic(name):
        warn_of_other_objects(name, dicts, truth)
    if not detections:
        logger.warning("%s: no object is annotated, so that there is no AP", name)
    for task, metrics in results.items():
        poor = [key.removeprefix("AP-") for key, value in metrics.items() if key.startswith("AP-") and value < PERFECT]
        if not metrics["AP"] >= PERFECT and detections:  # NaN is not perfect either
            numbers = Counter((x["image_id"], x["category_id"]) for x in detections)
            (image, _), most = numbers.most_common(1)[0]
            limit = evaluator._max_dets_per_image[-1]
            empty = images_of_empty_masks(truth) if task == "segm" else []
            reason = f": image {image} has {most} objects of one class, and AP counts {limit}" if most > limit else ""
            if empty:
                reason += f": {len(empty)} masks have no pixel in their image, the first in image {empty[0]}"
            logger.warning(
                "%s: perfect detections would have %s AP %.2f, not 100, because of the classes %s%s",
                name,
                TASK_NAMES[task].strip(),
                metrics["AP"],
                ", ".join(poor[:5]) or "that it has",
                reason,
            )


def on_main_process(check: Callable[[], Any]) -> Any:
    """Runs a check on the main process only, and raises its error on all ranks, so that none waits for the others.

    Returns the check's result, and None on the other ranks.
    """
    problem: Exception | None = None
    result = None
    if comm.is_main_process():
        try:
            result = check()
        except Exception as error:
            problem = error
    problem = comm.all_gather(problem)[0]
    if problem is not None:
        raise problem
    return result


def _print_histogram(dicts: list[dict[str, Any]], names: list[str], panoptic: bool) -> None:
    """Logs how many objects each class has."""
    if panoptic:  # without "iscrowd", for crowds are objects here
        objects = [{"category_id": segment["category_id"]} for x in dicts for segment in x["segments_info"]]
    else:
        objects = [obj for x in dicts for obj in x.get("annotations", ())]
    # As if of one image: Detectron2 makes a numpy histogram for each, which takes 2 us a box.
    print_instances_class_histogram([{"annotations": objects}], names)
