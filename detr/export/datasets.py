"""What an export takes from data sets: images to calibrate with, and what a graph scores."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import ImageList
from torch import nn

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.loading import load_dataset
from detr.engine.registration import register_datasets
from detr.errors import InputError
from detr.evaluation import evaluators
from detr.modeling.preprocessing import BaseDetr

Load = Callable[[list[dict[str, Any]]], ImageList]


def choose_images(cfg: CfgNode, dataset: str, count: int) -> list[dict[str, Any]]:
    """At most ``count`` dicts of a data set, from all over it. Raises InputError as ``load_dataset``."""
    register_datasets(cfg)
    dicts = load_dataset(dataset)
    count = min(count, len(dicts))
    return [dicts[index * len(dicts) // count] for index in range(count)]


def image_loader(cfg: CfgNode, model: BaseDetr) -> Load:
    """From dicts of a data set to the batch that the model's network takes, as in an evaluation."""
    mapper = DetrDatasetMapper(cfg, is_train=False)
    return lambda dicts: model.preprocess([mapper(x) for x in dicts])  # type: ignore[no-any-return, operator]


def check_evaluation(cfg: CfgNode, dataset: str) -> None:
    """Raises InputError for a data set that is not there, or that the model cannot be measured on."""
    register_datasets(cfg)
    load_dataset(dataset)
    evaluators.check_measurable(cfg, dataset)
    evaluators.check_evaluator(cfg, dataset)


def measure(cfg: CfgNode, model: nn.Module, dataset: str) -> dict[str, float]:
    """AP and PQ in percent by names such as "bbox/AP"; the first one is the main metric (see ``main_metric``)."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = (dataset,)
    mapper = DetrDatasetMapper(cfg, is_train=False)
    with tempfile.TemporaryDirectory() as cfg.OUTPUT_DIR, contextlib.redirect_stdout(io.StringIO()):
        loader = build_detection_test_loader(load_dataset(dataset), mapper=mapper, num_workers=0)
        results = inference_on_dataset(model.eval(), loader, evaluators.build_evaluator(cfg, dataset))
    found = {
        f"{task}/{name}": float(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if name in ("AP", "PQ")
    }
    main = evaluators.main_metric(cfg)
    if main not in found:
        raise InputError(f"the data set {dataset} gives no {main}: name one with annotations for it in --evaluate")
    return {main: found[main], **found}
