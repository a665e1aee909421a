"""From a data set and weights to the config of a fine-tuning, and from its best model to a score threshold."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm

from detr import model_zoo
from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.hub import TORCHVISION
from detr.config import changed_from_defaults
from detr.config_node import overruled
from detr.data.coco_file import class_ids, coco_dicts, read_coco
from detr.data.dataset_mapper import check_input_keys
from detr.data.formats import recognize, split_off, write_coco
from detr.data.ground_truth import load_truth
from detr.engine.defaults import load_config
from detr.engine.options import merge_options, option_pairs
from detr.engine.plan import apply_plan, plan_for
from detr.engine.trainer import Trainer
from detr.errors import InputError
from detr.evaluation.operating_point import OperatingPoint, best_operating_point
from detr.model_config import config_of

CONFIG = "finetune.yaml"  # in the output folder; train_net.py takes it too
TRAIN, VAL = "finetune_train", "finetune_val"  # as the data sets are registered
VALIDATION_SHARE = 0.2  # of the images, where none are named for validation
SEED = 0  # by which they are chosen
NO_WEIGHTS = "none"
BASE_MODEL = "detr_R_50"
BACKBONES = (TORCHVISION, "detectron2://ImageNetPretrained/")  # weights of a backbone alone


@dataclass(frozen=True)
class Data:
    """The data set of a fine-tuning.

    sources: (path, split) of the training and of the validation set, as ``register_any`` takes them
    images: the number of training images
    lines: what was found, and how it was split
    """

    class_names: tuple[str, ...]
    sources: tuple[tuple[str, str], tuple[str, str]]
    images: int
    lines: tuple[str, ...]


def find_data(path: str, output: str) -> Data:
    """The data set at a path, in any format that ``recognize`` knows.

    Without validation images some are split off, and both parts are written as COCO files into output/data. Raises
    InputError for data without a training set, and as ``recognize`` and ``Split.dicts`` do.
    """
    found = recognize(path)
    if "train" not in found.splits:
        raise InputError(
            f"{found.path} has no training images, only {', '.join(found.splits)}: name their folder or file train"
        )
    dicts, names = found.splits["train"].dicts(), tuple(found.class_names)
    line = f"{found.kind} data in {found.path}"
    if "val" in found.splits:
        return Data(names, ((found.path, "train"), (found.path, "val")), len(dicts), (line,))
    train, val = split_off(dicts, VALIDATION_SHARE, SEED)
    return _written(names, train, val, output, (line, _split_line(val, dicts)))


def find_coco_data(
    train_json: str, train_images: str | None, val_json: str | None, val_images: str | None, output: str
) -> Data:
    """The data set of one or two COCO files; both parts are written into output/data, with the paths of their images.

    train_images, val_images: the folders of the images, by default where they are found beside the file

    Raises InputError for a file or folder that is missing, and for files of different classes.
    """
    train, names = _read_coco("train", train_json, train_images)
    lines: tuple[str, ...] = (f"COCO data in {train_json}" + (f" and {val_json}" if val_json else ""),)
    if val_json is None:
        every = train
        train, val = split_off(every, VALIDATION_SHARE, SEED)
        lines = (*lines, _split_line(val, every))
    else:
        val, val_names = _read_coco("val", val_json, val_images)
        if val_names != names:
            raise InputError(
                f"{train_json} has the classes {', '.join(names)}, and {val_json} {', '.join(val_names)}, in the order "
                "of their ids: make them alike"
            )
    return _written(names, train, val, output, lines)


def _read_coco(part: str, file: str, images: str | None) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The dicts and the class names of a COCO file."""
    if not os.path.isfile(file):
        raise InputError(f"--{part}-json {file} is no file: name the annotations in COCO format")
    if images is None:
        found = recognize(file)
        return next(iter(found.splits.values())).dicts(), tuple(found.class_names)
    if not os.path.isdir(images):
        raise InputError(f"--{part}-images {images} is no folder: name the one that the file names are relative to")
    content = read_coco(file)
    classes = class_ids(content)
    names = {category["id"]: category["name"] for category in content["categories"]}
    return coco_dicts(content, file, os.path.abspath(images), classes), tuple(names[key] for key in classes)


def _split_line(val: Sequence[Any], every: Sequence[Any]) -> str:
    return f"no validation images are named: {len(val)} of {len(every)} are split off, by the seed {SEED}"


def _written(
    names: tuple[str, ...],
    train: Sequence[dict[str, Any]],
    val: Sequence[dict[str, Any]],
    output: str,
    lines: tuple[str, ...],
) -> Data:
    paths = [os.path.join(os.path.abspath(output), "data", f"{part}.json") for part in ("train", "val")]
    for part, path in zip((train, val), paths, strict=True):
        write_coco(part, names, path)
    return Data(names, ((paths[0], "train"), (paths[1], "val")), len(train), lines)


def base_config(weights: str, config_file: str = "") -> CfgNode:
    """The config to fine-tune weights with: their own model and images, and DETR's optimizer.

    weights: as ``config_of`` takes them, of a backbone alone, or "none"
    config_file: in the place of the weights' own config; for those of a backbone or none, by default detr_R_50

    Raises InputError as ``config_of``, and for an exported model, which cannot be trained.
    """
    recipe = load_config(model_zoo.config_file(BASE_MODEL), [])
    if weights == NO_WEIGHTS or weights.startswith(BACKBONES):
        cfg = load_config(config_file, []) if config_file else recipe
        cfg.MODEL.WEIGHTS = "" if weights == NO_WEIGHTS else weights
        return cfg
    cfg = config_of(weights, config_file)
    if cfg.MODEL.DETR.EXPORTED:
        raise InputError(f"--weights {weights} is an exported model, which cannot be trained: name what it comes from")
    if not config_file:  # the card of a checkpoint has no schedule
        cfg.merge_from_other_cfg(CfgNode({"SOLVER": recipe.SOLVER, "DATALOADER": recipe.DATALOADER}))
    return cfg


def finetuning_config(
    cfg: CfgNode, data: Data, output: str, opts: Sequence[str] = (), epochs: int | None = None, num_gpus: int = 1
) -> tuple[str, ...]:
    """Makes the config of a model that of its fine-tuning, in place. Returns the reasons of the plan, a line each.

    cfg: as ``base_config`` returns it
    opts: config keys and values of the user, which win; epochs: of the user; num_gpus: to train on

    Raises InputError as ``merge_options``.
    """
    keys = cfg.MODEL.DETR
    keys.NUM_CLASSES = len(data.class_names)
    keys.PANOPTIC.ENABLED = False  # which classes are stuff is unknown
    keys.FREEZE_DETR, keys.FROZEN_WEIGHTS = False, ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (TRAIN,), (VAL,)
    cfg.DATASETS.REGISTER = tuple((name, *source) for name, source in zip((TRAIN, VAL), data.sources, strict=True))
    cfg.OUTPUT_DIR = output
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    wanted = cfg.clone()
    merge_options(wanted, opts)
    batch = wanted.SOLVER.IMS_PER_BATCH if "SOLVER.IMS_PER_BATCH" in dict(option_pairs(cfg, opts)) else None
    if batch is not None and batch < 1:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {batch}: it must be at least 1")
    check_input_keys(wanted)
    pretrained = bool(wanted.MODEL.WEIGHTS) and not wanted.MODEL.WEIGHTS.startswith(BACKBONES)
    plan = plan_for(wanted, data.images, pretrained=pretrained, batch=batch, epochs=epochs, num_gpus=num_gpus)
    apply_plan(cfg, plan)
    merge_options(cfg, opts)
    return plan.reasons


def write_config(cfg: CfgNode, reasons: Collection[str], output: str) -> str:
    """Writes what differs from the defaults, with the reasons as comments. Returns the path."""
    path = os.path.join(output, CONFIG)
    os.makedirs(output, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"# {line}\n" for line in reasons)
        changed = changed_from_defaults(cfg)
        for section, key in overruled(cfg):  # a file does not show which of two keys was set last
            changed.get(section, {}).pop(key, None)
        changed.VERSION = cfg.VERSION  # else Detectron2 guesses it
        file.write(str(changed.dump()))
    return path


def evaluate_best(cfg: CfgNode, model: torch.nn.Module) -> tuple[dict[str, Any], OperatingPoint | None]:
    """Loads the best checkpoint of the training in OUTPUT_DIR into its model, and evaluates it.

    Returns the results and, on the main process, the score threshold with the best precision and recall, if there is
    one.
    """
    path = os.path.join(cfg.OUTPUT_DIR, "model_best.pth")
    comm.synchronize()  # the main process may still be writing the file
    if os.path.isfile(path):
        DetrCheckpointer(model).load(path)
    name = cfg.DATASETS.TEST[0]
    evaluator = Trainer.build_evaluator(cfg, name)
    results = inference_on_dataset(model, Trainer.build_test_loader(cfg, name), evaluator)
    file = os.path.join(cfg.OUTPUT_DIR, "inference", "coco_instances_results.json")
    if not results or not os.path.isfile(file):
        return results, None
    with open(file, encoding="utf-8") as opened:
        detections = json.load(opened)
    return results, best_operating_point(load_truth(name, masks=False).content, detections)
