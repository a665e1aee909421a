"""Which of Detectron2's evaluators goes with which data set."""

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from detr.errors import InputError


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator for the ``evaluator_type`` in the data set's metadata; results go to OUTPUT_DIR/inference.

    Raises InputError for a data set without an evaluator.
    """
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    # A set registered as plain dicts has no type; COCOEvaluator writes itself a COCO file then.
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")
    if kind in ("cityscapes_instance", "cityscapes_sem_seg", "pascal_voc"):
        alone = {
            "cityscapes_instance": CityscapesInstanceEvaluator,
            "cityscapes_sem_seg": CityscapesSemSegEvaluator,
            "pascal_voc": PascalVOCDetectionEvaluator,
        }
        return alone[kind](dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg"):
        evaluators.append(SemSegEvaluator(dataset_name, distributed=True, output_dir=folder))
    if kind in ("coco", "coco_panoptic_seg"):
        evaluators.append(COCOEvaluator(dataset_name, output_dir=folder))
    if kind == "coco_panoptic_seg":
        evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
    if kind == "lvis":
        evaluators.append(LVISEvaluator(dataset_name, output_dir=folder))
    if not evaluators:
        raise InputError(
            f"no evaluator for the data set {dataset_name} of type {kind!r}: set its metadata's evaluator_type to coco"
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)
