#!/usr/bin/env python3
"""Shows DETR at work on a laptop: trains a small one on drawn shapes, evaluates it, draws what it finds.

python demo.py [--output FOLDER] [KEY VALUE ...]
"""

import argparse
import contextlib
import itertools
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase

from detr.data.dataset_mapper import DetrDatasetMapper, read_image
from detr.data.shapes import ensure_shapes
from detr.engine.setup import setup
from detr.engine.trainer import Trainer
from detr.errors import exit_with_one_line
from detr.visualization import plot_training, save_picture, sheet, truth_beside_detections

CONFIG = Path(__file__).parent / "configs" / "quickstart" / "shapes_detection.yaml"
PICTURES = 8  # validation images on the sheet
EXPECTED = "about 9 minutes on two cores"


class Progress(HookBase):
    """Records the minutes since the start, and tells how far the training is, now and then."""

    every_seconds = 20.0

    def before_train(self) -> None:
        self.start = self.told = time.perf_counter()

    def before_step(self) -> None:
        # Before the step, so that Detectron2's writer, which comes after it, finds the number.
        self.trainer.storage.put_scalar("minutes", self.minutes(), smoothing_hint=False)

    def after_step(self) -> None:
        done, total = self.trainer.iter + 1, self.trainer.max_iter
        if done < 50 or time.perf_counter() - self.told < self.every_seconds:
            return
        self.told = time.perf_counter()
        storage = self.trainer.storage
        loss = storage.history("total_loss").median(20)
        ap = f", AP {storage.latest()['bbox/AP'][0]:.1f}" if "bbox/AP" in storage.latest() else ""
        tell(f"  step {done} of {total}, {self.minutes():.1f} of about {self.minutes() * total / done:.1f} minutes:"
             f" loss {loss:.1f}{ap}")  # fmt: skip

    def minutes(self) -> float:
        return (time.perf_counter() - self.start) / 60


def main() -> None:
    args = parse_args()
    output = free_folder(args.output)
    tell(f"Training a small DETR on drawn shapes, on the CPU: {EXPECTED}.\nFolder: {output.absolute()}")
    tell(f"  the data set, drawn at the first time in half a minute: {ensure_shapes()}")
    sys.stdout = open(output / "console.txt", "w")  # noqa: SIM115  loggers write to it until the end
    opts = ["OUTPUT_DIR", str(output), *args.opts]
    cfg = setup(argparse.Namespace(config_file=str(CONFIG), opts=opts, eval_only=False, resume=False))
    trainer = Trainer(cfg)
    progress = Progress()
    trainer.register_hooks([progress])
    trainer.resume_or_load(resume=False)
    results = trainer.train() or {}
    minutes = progress.minutes()
    plot_training(str(output / "metrics.json"), str(output / "training.png"))
    save_picture(draw_detections(cfg, trainer.model), str(output / "predictions.png"))
    box = results["bbox"]
    tell(
        f"Done in {minutes:.1f} minutes: box AP {box['AP']:.1f}, AP50 {box['AP50']:.1f} on {cfg.DATASETS.TEST[0]}\n"
        f"  {output / 'predictions.png'}  ground truth beside what the model finds\n"
        f"  {output / 'training.png'}     loss against iterations, AP against time\n"
        f"  {output / 'log.txt'}          the whole log\n"
        "The weights can be evaluated again with\n"
        f"  {shlex.join([sys.executable, 'train_net.py', '--eval-only', '--config-file', str(CONFIG)])} "
        f"MODEL.WEIGHTS {output / 'model_final.pth'}"
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="output/demo", help="a folder; where it exists, a number is added")
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


def tell(text: str) -> None:
    """To the terminal; what Detectron2 prints, several hundred lines, goes to a file."""
    print(text, file=sys.__stdout__, flush=True)


@torch.no_grad()
def draw_detections(cfg: CfgNode, model: torch.nn.Module) -> np.ndarray:
    """The first validation images that have objects, two pairs a row."""
    name = cfg.DATASETS.TEST[0]
    mapper = DetrDatasetMapper(cfg, is_train=False)
    chosen = [x for x in DatasetCatalog.get(name) if len(x["annotations"]) > 1][:PICTURES]
    model.eval()
    pairs = [
        truth_beside_detections(
            read_image(x, "RGB"),
            x["annotations"],
            model([mapper(x)])[0]["instances"],
            MetadataCatalog.get(name),
        )
        for x in chosen
    ]
    return sheet(pairs, columns=2)


if __name__ == "__main__":
    with exit_with_one_line():
        main()
