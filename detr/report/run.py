"""The folder of an evaluated run: its config, its metrics, and the detections beside the ground truth."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr.checkpoint.files import weights_of_run
from detr.data.coco_file import read_json
from detr.engine.metrics_files import FILE, parse_metrics
from detr.engine.registration import register_entries
from detr.errors import InputError
from detr.report.ground_truth import Data, read_file, read_registered
from detr.report.results import Run
from detr.report.run_checks import check_detections, warnings_about

RESULTS = "coco_instances_results.json"
EVALUATORS = ("coco", "coco_panoptic_seg")  # which leave it


def read_run(folder: str, dataset: str = "", predictions: str = "", annotations: str = "", images: str = "") -> Run:
    """What is in the folder of a run of ``train_net.py``, or of Detectron2's own, that was evaluated.

    dataset: which data set of DATASETS.TEST; by default the one that the results are of
    predictions: a results file elsewhere than in inference/
    annotations, images: a file in COCO's format and the folder of its images, in the place of a registered data set

    Raises InputError where the folder, the results or the data set are missing, or do not belong to each other.
    """
    if not os.path.isdir(folder):
        raise InputError(f"there is no folder {folder}: name the OUTPUT_DIR of a run")
    if bool(annotations) != bool(images):
        raise InputError(
            "the annotations and the images of a data set go together: name the file with --annotations, and the "
            "folder with --images"
        )
    config_file = _config_file(folder)
    if not config_file and not (dataset or annotations):
        raise InputError(
            f"{folder} has no config.yaml, which names the data set: name another folder, or the data set with "
            "--dataset, or its COCO file and images with --annotations and --images"
        )
    config = _read_config(config_file) if config_file else {}
    if annotations:
        name = dataset or os.path.splitext(os.path.basename(annotations))[0]
        path = predictions or _results_of(folder, name, shared=True)
    else:
        register_entries(config.get("DATASETS", {}).get("REGISTER") or ())
        name, path = _dataset_and_results(folder, config, dataset, predictions)
    if not path:
        raise InputError(f"{folder} was not evaluated{f' on {name}' if name else ''}: {_how_to_evaluate(folder, name)}")
    if not os.path.isfile(path):
        raise InputError(f"there are no predictions {path}: name a results file in COCO's format")
    detections = read_json(path)
    masks = isinstance(detections, list) and any(isinstance(x, dict) and "segmentation" in x for x in detections)
    data: Data = read_file(annotations, images, masks) if annotations else read_registered(name, masks)
    check_detections(detections, path, data.truth, name)
    log = Path(folder, FILE)
    metrics = parse_metrics(log) if log.is_file() else {}
    return Run(
        folder=folder,
        config=config,
        config_file=config_file,
        metrics=metrics,
        dataset=name,
        truth=data.truth,
        class_names=data.class_names,
        category_ids=data.category_ids,
        detections=detections,
        files=data.files,
        warnings=() if predictions else warnings_about(folder, path, config_file, config, metrics),
    )


def _config_file(folder: str) -> str:
    """That of the last evaluation or training; "" where there is none."""
    paths = [os.path.join(folder, name) for name in ("config_eval.yaml", "config.yaml")]
    # An evaluation leaves config.yaml as it is, but writes it again, before its own.
    return max(filter(os.path.isfile, paths), key=os.path.getmtime, default="")


def _read_config(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read ({' '.join(str(error).split())}): restore the file") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is no config: restore the file")
    return config


def _test_sets(config: Mapping[str, Any]) -> list[str]:
    """DATASETS.TEST, or the test set of a LazyConfig."""
    names = config.get("DATASETS", {}).get("TEST")
    if names is None:
        names = config
        for key in ("dataloader", "test", "dataset", "names"):
            names = names.get(key) if isinstance(names, Mapping) else None
    return [names] if isinstance(names, str) else list(names or ())


def _results_of(folder: str, name: str, shared: bool) -> str:
    """The results of a data set, of its own folder, or of the one that the data sets of a run share; "" for none."""
    own, common = os.path.join(folder, "inference", name, RESULTS), os.path.join(folder, "inference", RESULTS)
    paths = [own, *([common] if shared else [])]
    return next(filter(os.path.isfile, paths), "")


def _dataset_and_results(folder: str, config: Mapping[str, Any], dataset: str, predictions: str) -> tuple[str, str]:
    names = [dataset] if dataset else _test_sets(config)
    if not names:
        raise InputError(f"the config of {folder} has no data set in DATASETS.TEST: name it with --dataset")
    for name in names:
        _check_set(name)
    if predictions:
        if len(names) > 1:
            raise InputError(f"{predictions} may be of {' or '.join(names)}: name one of them with --dataset")
        return names[0], predictions
    for name in names:
        if path := _results_of(folder, name, shared=False):
            return name, path
    # In one folder for all, those of the data set that is evaluated last are left.
    return names[-1], _results_of(folder, names[-1], shared=True)


def _check_set(name: str) -> None:
    if name not in DatasetCatalog:
        raise InputError(
            f"the data set {name} is not registered here: name its COCO file with --annotations and the folder of its "
            "images with --images, or name it in DATASETS.REGISTER of the training"
        )
    kind = MetadataCatalog.get(name).get("evaluator_type", "coco")
    if kind not in EVALUATORS:
        raise InputError(
            f"the data set {name} is of type {kind}, whose evaluator leaves no {RESULTS}: a report needs a data set "
            f"of type {' or '.join(EVALUATORS)}"
        )


def _how_to_evaluate(folder: str, name: str) -> str:
    config = os.path.join(folder, "config.yaml")
    options = ["MODEL.WEIGHTS", weights_of_run(folder) or "WEIGHTS", "OUTPUT_DIR", folder]
    if name:
        options += ["DATASETS.TEST", f"('{name}',)"]
    return f"python train_net.py --eval-only --config-file {shlex.join([config, *options])}"
