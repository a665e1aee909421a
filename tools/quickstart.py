#!/usr/bin/env python3
"""Trains a small DETR on drawn shapes on a laptop, evaluates it, and draws its predictions beside the ground truth.

python tools/quickstart.py [--panoptic] [--output FOLDER] [KEY VALUE ...]
"""

import argparse
import contextlib
import itertools
import shlex
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.images import read_image
from detr.data.metadata import is_panoptic
from detr.data.panoptic_mapper import read_segment_ids
from detr.data.shapes import ensure_shapes
from detr.engine.defaults import setup
from detr.engine.trainer import Trainer
from detr.errors import exit_with_one_line
from detr.visualization import plot_training, save_picture, sheet, truth_beside_detections, truth_beside_panoptic

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "quickstart"
PICTURES = 8  # validation images on the sheet
METRICS = (
    ("box AP", "bbox", "AP"),
    ("AP50", "bbox", "AP50"),
    ("mask AP", "segm", "AP"),
    ("PQ", "panoptic_seg", "PQ"),
)


class Progress(HookBase):
    """Records the minutes since the start, and prints a line of progress now and then."""

    every_seconds = 20.0

    def __init__(self, terminal: TextIO) -> None:
        self.terminal = terminal

    def before_train(self) -> None:
        self.start = self.last_line = time.perf_counter()

    def before_step(self) -> None:
        # Before the step, so that Detectron2's writer, which comes after it, finds the number.
        self.trainer.storage.put_scalar("minutes", self.minutes(), smoothing_hint=False)

    def after_step(self) -> None:
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        if done < 50 or time.perf_counter() - self.last_line < self.every_seconds:
            return
        self.last_line = time.perf_counter()
        storage = self.trainer.storage
        loss = storage.history("total_loss").median(20)
        ap = f", AP {storage.latest()['bbox/AP'][0]:.1f}" if "bbox/AP" in storage.latest() else ""
        print(
            f"  step {done} of {total}, {self.minutes():.1f} of about {self.minutes() * total / done:.1f} minutes: "
            f"loss {loss:.1f}{ap}",
            file=self.terminal,
            flush=True,
        )

    def minutes(self) -> float:
        return (time.perf_counter() - self.start) / 60


def main() -> None:
    args = parse_args()
    output = free_folder(args.output)
    config = CONFIGS / ("shapes_panoptic.yaml" if args.panoptic else "shapes_detection.yaml")
    what, minutes = ("boxes, masks and panoptic maps", 8) if args.panoptic else ("boxes", 6)
    print(
        f"Training a small DETR on drawn shapes, for {what}, on the CPU: about {minutes} minutes on two cores.\n"
        f"Folder: {output.absolute()}",
        flush=True,
    )
    print(f"  the data set, drawn at the first time in half a minute: {ensure_shapes()}", flush=True)
    opts = ["OUTPUT_DIR", str(output), *args.opts]
    progress = Progress(terminal=sys.stdout)
    # Detectron2's log, several hundred lines, goes to a file. Its loggers write to what is stdout when they are made.
    with open(output / "console.txt", "w") as console, contextlib.redirect_stdout(console):
        cfg = setup(argparse.Namespace(config_file=str(config), opts=opts, eval_only=False, resume=False))
        trainer = Trainer(cfg)
        trainer.register_hooks([progress])
        trainer.resume_or_load(resume=False)
        results = trainer.train() or {}
        taken = progress.minutes()
        plot_training(str(output / "metrics.json"), str(output / "training.png"))
        save_picture(draw_predictions(cfg, trainer.model), str(output / "predictions.png"))
    numbers = ", ".join(f"{name} {results[task][key]:.1f}" for name, task, key in METRICS if task in results)
    evaluation = [sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--config-file", str(config)]
    print(
        f"Done in {taken:.1f} minutes: {numbers} on {cfg.DATASETS.TEST[0]}\n"
        f"  {output / 'predictions.png'}  ground truth beside predictions\n"
        f"  {output / 'training.png'}     loss against iterations, accuracy against time\n"
        f"  {output / 'log.txt'}          the whole log\n"
        "The weights can be evaluated again with\n"
        f"  {shlex.join([*evaluation, *args.opts, 'MODEL.WEIGHTS', str(output / 'model_final.pth')])}"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoptic", action="store_true", help="masks and panoptic maps too")
    parser.add_argument("--output", default="output/quickstart", help="a folder; where it exists, a number is added")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args()


def free_folder(wanted: str) -> Path:
    """``wanted``, or the first of wanted_2, wanted_3, ... that does not exist; it is made."""
    for number in itertools.count(1):
        folder = Path(wanted if number == 1 else f"{wanted}_{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def draw_predictions(cfg: CfgNode, model: torch.nn.Module) -> np.ndarray:
    """The first validation images that have objects, two pairs a row: (H, W, 3) uint8."""
    name = cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(name)
    mapper = DetrDatasetMapper(cfg, is_train=False)
    segments = "segments_info" if is_panoptic(name) else "annotations"
    chosen = [x for x in DatasetCatalog.get(name) if len(x[segments]) > 1][:PICTURES]
    model.eval()
    pairs = []
    for x in chosen:
        image, (output,) = read_image(x["file_name"], "RGB"), model([mapper(x)])
        if "panoptic_seg" in output:
            truth = read_segment_ids(x["pan_seg_file_name"]), x["segments_info"]
            pairs.append(truth_beside_panoptic(image, truth, output["panoptic_seg"], metadata))
        else:
            pairs.append(truth_beside_detections(image, x["annotations"], output["instances"], metadata))
    return sheet(pairs, columns=2)


if __name__ == "__main__":
    with exit_with_one_line():
        main()
