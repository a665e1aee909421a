"""Which of Detectron2's evaluators goes with which data set, and one table of all their numbers."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.file_io import PathManager
from PIL import Image

from detr.checkpoint.class_rows import differences, listed
from detr.data.metadata import class_names, is_panoptic, thing_ids
from detr.errors import InputError
from detr.evaluation.coco import FastCOCOEvaluator, choose_backend
from detr.evaluation.panoptic import panoptic_evaluator
from detr.modeling.card import ModelCard
from detr.modeling.preprocessing import BaseDetr

# What the tasks of Detectron2's results are called in the table; panoptic numbers speak for themselves.
TASK_NAMES = {"bbox": "box ", "segm": "mask ", "panoptic_seg": ""}
# evaluator_type -> the package that Detectron2's evaluator needs, and imports as late as it can
PACKAGES = {
    "lvis": "lvis",
    "cityscapes_instance": "cityscapesscripts",
    "cityscapes_sem_seg": "cityscapesscripts",
}

logger = logging.getLogger(__name__)


def is_detr(cfg: CfgNode) -> bool:
    """Whether the meta-architecture is ``Detr``, a subclass of it or an exported one."""
    name = cfg.MODEL.META_ARCHITECTURE
    found = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(found, type) and issubclass(found, BaseDetr)


def main_metric(cfg: CfgNode) -> str:
    """The metric, by its name in the event storage, that chooses the best checkpoint: PQ, else mask AP, else box AP."""
    name = cfg.DATASETS.TEST[0]
    metric = "segm/AP" if cfg.MODEL.MASK_ON else "bbox/AP"
    if measures_pq(cfg, name):
        metric = "panoptic_seg/PQ"
    return metric if len(cfg.DATASETS.TEST) == 1 else f"{name}/{metric}"


def measures_pq(cfg: CfgNode, dataset_name: str) -> bool:
    """Whether the evaluation of a data set compares panoptic maps."""
    return is_panoptic(dataset_name) and (not is_detr(cfg) or cfg.MODEL.DETR.PANOPTIC.ENABLED)


def check_measurable(cfg: CfgNode, dataset_name: str) -> None:
    """Raises InputError for a panoptic set of which neither AP nor PQ can be had."""
    if not MetadataCatalog.get(dataset_name).get("json_file") and not measures_pq(cfg, dataset_name):
        raise InputError(
            f"nothing of the data set {dataset_name} can be measured: it has no json_file with instance annotations "
            "for AP, and MODEL.DETR.PANOPTIC.ENABLED, which PQ needs, is False; set one of them, or DATASETS.TEST ()"
        )


def check_package(dataset_name: str) -> None:
    """Raises InputError where the package that evaluates the data set is missing."""
    package = PACKAGES.get(MetadataCatalog.get(dataset_name).get("evaluator_type", ""))
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(
            f"the evaluation of the data set {dataset_name} needs the package {package}, which is not installed: pip "
            f"install {package}"
        )


def check_panopticapi() -> None:
    """Raises InputError where the package that computes PQ is missing."""
    if importlib.util.find_spec("panopticapi") is None:
        # Its metadata asks for numpy < 2, which it does not need.
        raise InputError(
            "panopticapi, which computes PQ, is not installed: pip install --no-deps panopticapi-lite==0.2.0"
        )


def check_evaluator(cfg: CfgNode, dataset_name: str) -> None:
    """Raises InputError for a data set without an evaluator, and where its package is missing."""
    check_package(dataset_name)
    if measures_pq(cfg, dataset_name) and not (is_detr(cfg) and choose_backend(cfg.TEST.COCO_BACKEND) == "hotcoco"):
        check_panopticapi()
    kind = _evaluator_type(dataset_name)
    known = ["coco", "lvis", "cityscapes_instance", "cityscapes_sem_seg", "pascal_voc"]
    if not is_detr(cfg):
        known += ["sem_seg", "coco_panoptic_seg"]
    elif MetadataCatalog.get(dataset_name).get("json_file") or measures_pq(cfg, dataset_name):
        known += ["coco_panoptic_seg"]
    if kind not in known:
        raise InputError(
            f"no evaluator for the data set {dataset_name} of type {kind!r}: set its metadata's evaluator_type to coco"
        )
    missing = {"dirname", "split", "year"} - MetadataCatalog.get(dataset_name).as_dict().keys()
    if kind == "pascal_voc" and missing:
        raise InputError(
            f"the data set {dataset_name} of type 'pascal_voc' has no {min(missing)} in its metadata: register it with "
            "detectron2.data.datasets.register_pascal_voc, or set its metadata's evaluator_type to coco"
        )


def _evaluator_type(dataset_name: str) -> Any:
    # A set registered as plain dicts has no type.
    return MetadataCatalog.get(dataset_name).get("evaluator_type", "coco")


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator for the ``evaluator_type`` in the data set's metadata; results go to OUTPUT_DIR/inference, those of
    several data sets to a folder each in there.

    Raises InputError for a data set without an evaluator, for a package that is missing, and for a TEST.COCO_BACKEND
    that cannot be had.
    """
    check_evaluator(cfg, dataset_name)
    own = [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []  # else the last set's results would be the only ones
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", *own)
    kind = _evaluator_type(dataset_name)
    if kind in ("cityscapes_instance", "cityscapes_sem_seg", "pascal_voc"):
        by_kind = {
            "cityscapes_instance": CityscapesInstanceEvaluator,
            "cityscapes_sem_seg": CityscapesSemSegEvaluator,
            "pascal_voc": PascalVOCDetectionEvaluator,
        }
        return by_kind[kind](dataset_name)
    evaluators: list[DatasetEvaluator] = []
    if kind in ("sem_seg", "coco_panoptic_seg") and not is_detr(cfg):  # Detr gives no semantic segmentation
        evaluators.append(SemSegEvaluator(dataset_name, output_dir=folder, sem_seg_loading_fn=_read_labels))
    instances = instance_evaluator(cfg, dataset_name, output_dir=folder)
    if instances is not None:
        evaluators.append(instances)
    if kind == "coco_panoptic_seg" and measures_pq(cfg, dataset_name):
        if is_detr(cfg):
            evaluators.append(panoptic_evaluator(dataset_name, folder, cfg.TEST.COCO_BACKEND))
        else:
            evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
    if kind == "lvis":
        evaluators.append(LVISEvaluator(dataset_name, output_dir=folder))
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


def _read_labels(filename: str, copy: bool = False, dtype: Any = None) -> np.ndarray:
    """The class of every pixel, (H, W). Detectron2's own function passes ``copy=False``, which numpy 2 refuses here."""
    with PathManager.open(filename, "rb") as file:
        return np.array(Image.open(file), dtype=dtype)


def instance_evaluator(cfg: CfgNode, dataset_name: str, **options: Any) -> FastCOCOEvaluator | None:
    """The one for AP of boxes and masks; None for a data set without instance annotations in COCO's terms.

    options: of FastCOCOEvaluator
    """
    kind = _evaluator_type(dataset_name)
    options = {"tasks": _tasks(cfg), "backend": cfg.TEST.COCO_BACKEND, **options}
    if kind == "coco_panoptic_seg" and is_detr(cfg):
        if MetadataCatalog.get(dataset_name).get("json_file"):  # optional in Detectron2's register_coco_panoptic
            return ThingsEvaluator(dataset_name, **options)
        logger.info("%s has no json_file with instance annotations: no AP", dataset_name)
    elif kind in ("coco", "coco_panoptic_seg"):
        return FastCOCOEvaluator(dataset_name, **options)
    return None


def _tasks(cfg: CfgNode) -> tuple[str, ...] | None:
    """What Detr's instances are compared by; None lets Detectron2 look at those of another model."""
    if not is_detr(cfg):
        return None
    return ("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",)


class ThingsEvaluator(FastCOCOEvaluator):
    """AP of the things of a panoptic set, for a model whose classes are things and stuff.

    The ground truth is ``json_file``, as for instance data sets. Detectron2's own evaluator needs
    ``thing_classes`` to hold only things, which is not so in `coco_panoptic_standard`.
    """

    def __init__(self, dataset_name: str, **options: Any) -> None:
        """options: of FastCOCOEvaluator. The things must have the contiguous ids 0..T-1."""
        super().__init__(dataset_name, **options)
        self.things = torch.tensor(thing_ids(dataset_name))
        # COCOeval goes through the data set's ids in ascending order.
        ids = MetadataCatalog.get(dataset_name).thing_dataset_id_to_contiguous_id
        names = class_names(dataset_name) or []
        self.thing_names = [names[ids[key]] for key in sorted(ids)] if names else []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As FastCOCOEvaluator's; boxes of stuff, which no annotation can match, are left out."""
        instances = [output["instances"].to("cpu") for output in outputs]
        things = [{"instances": x[torch.isin(x.pred_classes, self.things)]} for x in instances]
        super().process(inputs, things)

    def _derive_coco_results(
        self, coco_eval: Any, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        return super()._derive_coco_results(coco_eval, iou_type, self.thing_names)  # type: ignore[no-any-return]


def warn_of_other_classes(cfg: CfgNode, model: torch.nn.Module) -> None:
    """Warns of test sets that name or order the classes otherwise than the model, whose AP would mean nothing."""
    card = getattr(model, "card", None)
    known = (card.class_names if isinstance(card, ModelCard) else None) or ()
    for name in cfg.DATASETS.TEST:
        names = class_names(name) or []
        if len(names) == len(known) and (found := differences(known, names, "the model")):
            logger.warning(
                "%s: its classes have other names or another order than the model's: %s. Unless they only have other "
                "names, the results are wrong: correct the data set, or name it in DATASETS.TRAIN too, so that rows "
                "are moved to the classes of the same name",
                name,
                listed(found),
            )
