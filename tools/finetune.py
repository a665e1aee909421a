#!/usr/bin/env python3
"""Fine-tunes a DETR on your own images: reads the data set, plans the training, trains, and shows what was learned.

python tools/finetune.py --data my_photos --output output/mine
python tools/finetune.py --data my_photos --weights output/first/model_best.pth --epochs 20 --output output/second
python tools/finetune.py --train-json train.json --train-images photos --output output/mine SOLVER.IMS_PER_BATCH 4
python tools/finetune.py --resume --output output/mine

FOLDER may be of COCO, YOLO (data.yaml) or Pascal VOC files, also as Roboflow exports them.
"""

import argparse
import math
import os
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from tabulate import tabulate

from detr.checkpoint import set_score_threshold
from detr.data.class_table import class_table
from detr.data.loading import load_dataset
from detr.data.metadata import class_names
from detr.engine.defaults import check_output_folder, setup
from detr.engine.launching import is_first_process, launch, num_processes, was_restarted
from detr.engine.trainer import Trainer
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.evaluation.operating_point import OperatingPoint
from detr.finetuning import (
    CONFIG,
    TRAIN,
    VAL,
    base_config,
    evaluate_best,
    find_coco_data,
    find_data,
    finetuning_config,
    write_config,
)
from detr.pictures.curves import plot_training
from detr.pictures.sheets import predictions_sheet, save_picture, targets_sheet

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 25  # rows of a table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="FOLDER", help="the data set: a folder, a COCO JSON file or YOLO's data.yaml")
    data.add_argument("--train-json", metavar="FILE", help="instead: training annotations in COCO format")
    data.add_argument("--train-images", metavar="FOLDER", help="their images; by default in the JSON's folder")
    data.add_argument("--val-json", metavar="FILE", help="validation annotations; by default a fifth of the images")
    data.add_argument("--val-images", metavar="FOLDER", help="their images; by default in the JSON's folder")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--weights",
        default="detr://detr_R_50",
        metavar="NAME",
        help="what to start from: a released model (%(default)s), a checkpoint file, or none",
    )
    model.add_argument(
        "--config-file", default="", metavar="FILE", help="the model's config, where the weights do not tell"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where everything is written")
    parser.add_argument("--epochs", type=int, metavar="N", help="how long; by default by the number of images")
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="how many to train on")
    parser.add_argument("--resume", action="store_true", help="go on with the training in --output")
    parser.add_argument("--verbose", action="store_true", help="Detectron2's whole log on the terminal")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys, as for train_net.py")
    args = parser.parse_intermixed_args(argv)
    if args.resume and (given := "--data" if args.data else args.train_json and "--train-json"):
        raise InputError(f"--resume goes on with the data and weights of the training in --output: leave out {given}")
    if not args.resume and bool(args.data) == bool(args.train_json):
        raise InputError("name your data set with --data FOLDER, or with --train-json FILE (one of the two)")
    if args.epochs is not None and args.epochs < 1:
        raise InputError(f"--epochs is {args.epochs}: it must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config = Path(args.output) / CONFIG
    if args.resume or (was_restarted() and config.is_file()):
        if not config.is_file():
            raise InputError(f"--resume: {args.output} has no {CONFIG}, so that there is no fine-tuning to go on with")
        if args.epochs is not None:
            args.opts = ["SOLVER.MAX_EPOCHS", str(args.epochs), *args.opts]
        args.opts = ["OUTPUT_DIR", args.output, *args.opts]  # the folder may have been moved
    else:
        if is_first_process():  # the others wait for it in launch
            check_output_folder(args.output)
            plan(args)
        args.opts = []  # they are in the config now
    args.config_file, args.eval_only = str(config), False
    launch(finetune, args)


def plan(args: argparse.Namespace) -> None:
    """Writes the config of the training, and prints what was found and decided."""
    cfg = base_config(args.weights, args.config_file)  # first: with a mistake in the weights, nothing is written
    if args.data:
        data = find_data(args.data, args.output)
    else:
        data = find_coco_data(args.train_json, args.train_images, args.val_json, args.val_images, args.output)
    reasons = finetuning_config(cfg, data, args.output, args.opts, args.epochs, num_processes(args.num_gpus))
    write_config(cfg, reasons, args.output)
    print("\n".join((*data.lines, *reasons)), flush=True)


def finetune(args: argparse.Namespace) -> None:
    """Runs on every rank."""
    start = time.perf_counter()
    cfg = setup(args)
    trainer = Trainer(cfg)
    output = Path(cfg.OUTPUT_DIR)
    if comm.is_main_process():
        parts = {"training": load_dataset(TRAIN), "validation": load_dataset(VAL)}
        print(class_table(parts, class_names(TRAIN) or []), flush=True)
        save_picture(targets_sheet(cfg), str(output / "training_images.png"))
        print(f"what the network is shown, with its boxes: {output / 'training_images.png'}", flush=True)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    results, point = evaluate_best(cfg, trainer.model)
    if comm.is_main_process():
        report(cfg, trainer.model, results, point, (time.perf_counter() - start) / 60)


def report(
    cfg: CfgNode, model: torch.nn.Module, results: dict[str, Any], point: OperatingPoint | None, minutes: float
) -> None:
    """Writes the pictures, and the threshold into the best checkpoint; prints what came out."""
    output = Path(cfg.OUTPUT_DIR)
    best = output / "model_best.pth"
    if point is not None and best.is_file():
        set_score_threshold(str(best), point.threshold)
    plot_training(str(output / "metrics.json"), str(output / "training.png"))
    threshold = 0.5 if point is None else point.threshold
    save_picture(predictions_sheet(cfg, model, threshold), str(output / "predictions.png"))
    box = results["bbox"]
    print(f"Done in {minutes:.1f} minutes: box AP {box['AP']:.1f}, AP50 {box['AP50']:.1f} on the validation images")
    if point is None:
        print("No object is found at any score: train longer, or look at training_images.png: are the boxes right?")
    else:
        print(f"At scores of {point.threshold} or more, where precision and recall are best together:")
        print(results_of_classes(point, box))
    weights = best if best.is_file() else output / "model_final.pth"
    show = ("demo.py", "--model", weights, "--input", "IMAGES", "--output", output / "detections")
    again = ("OUTPUT_DIR", output.with_name(f"{output.name}_2"), "MODEL.WEIGHTS", weights)
    print(
        f"  {weights}: the weights of the best epoch, with all that Predictor and demo.py need\n"
        f"  {output / 'predictions.png'}: ground truth beside predictions\n"
        f"  {output / 'training.png'}: loss and AP in the course of the training\n"
        f"  {output / CONFIG}: the config, with the reasons of the plan\n"
        "To see what it gets wrong, to find objects in other images, to export the model, or to go on training:\n"
        f"  {command('tools/report.py', output)}\n"
        f"  {command(*show)}\n"
        f"  {command('tools/export_model.py', '--model', weights, '--format', 'onnx', '--output', output / 'onnx')}\n"
        f"  {command('train_net.py', '--config-file', output / CONFIG, *again)}"
    )


def command(script: str, *args: object) -> str:
    """As one would type it here."""
    return shlex.join(["python", os.path.relpath(ROOT / script), *map(str, args)])


def results_of_classes(point: OperatingPoint, box: dict[str, float]) -> str:
    """A row a class, and one for all; of many classes, those with the most objects. box: results in percent."""
    *classes, total = point.classes
    if len(classes) > LONGEST:
        classes = sorted(classes, key=lambda row: -row.objects)[:LONGEST]
    rows = []
    for row in (*classes, total):
        shares = [None if x is None else 100 * x for x in (row.precision, row.recall)]
        ap = box["AP"] if row is total else box.get(f"AP-{row.name}", math.nan)
        rows.append([row.name, row.objects, row.detections, None if math.isnan(ap) else ap, *shares])
    headers = ["class", "objects", "detections", "AP", "precision %", "recall %"]
    return str(tabulate(rows, headers=headers, floatfmt=".1f", missingval="-"))


if __name__ == "__main__":
    with exit_with_one_line("tools/finetune.py --resume --output FOLDER goes on from the last checkpoint"):
        main()
