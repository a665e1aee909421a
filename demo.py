#!/usr/bin/env python3
"""Shows DETR at work on a laptop: trains a small one on drawn shapes, evaluates it, draws what it finds.

python demo.py [--output FOLDER] [KEY VALUE ...]
"""

import argparse
import contextlib
import itertools
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase

from detr.data.dataset_mapper import DetrDatasetMapper, read_image
from detr.engine.setup import setup
from detr.engine.trainer import Trainer
from detr.errors import exit_with_one_line
from detr.visualization import plot_training, save_picture, sheet, truth_beside_detections

CONFIG = Path(__file__).parent / "configs" / "quickstart" / "shapes_detection.yaml"
PICTURES = 8  # validation images on the sheet


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
    opts = ["OUTPUT_DIR", str(output), *args.opts]
    print(
        f"Training a small DETR on drawn shapes, on the CPU: about 6 minutes on two cores.\nFolder: {output.absolute()}"
    )
    with quietly(output / "console.txt"):
        cfg = setup(argparse.Namespace(config_file=str(CONFIG), opts=opts, eval_only=False, resume=False, num_gpus=1))
        silence_console()
        trainer = Trainer(cfg)
        progress = Progress()
        trainer.register_hooks([progress])
        trainer.resume_or_load(resume=False)
        results: Any = trainer.train() or trainer._last_eval_results
        plot_training(str(output / "metrics.json"), str(output / "training.png"))
        save_picture(draw_detections(cfg, trainer.model), str(output / "predictions.png"))
    box = results["bbox"]
    print(
        f"Done in {progress.minutes():.1f} minutes: box AP {box['AP']:.1f}, AP50 {box['AP50']:.1f} on "
        f"{cfg.DATASETS.TEST[0]}\n"
        f"  {output / 'predictions.png'}  ground truth beside what the model finds\n"
        f"  {output / 'training.png'}     loss and AP against time\n"
        f"  {output / 'model_final.pth'}  the weights; evaluate them again with\n"
        f"    train_net.py --config-file {CONFIG.relative_to(Path(__file__).parent)} --eval-only "
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
    print(text, file=sys.__stdout__, flush=True)


@contextlib.contextmanager
def quietly(path: Path) -> Iterator[None]:
    """What is printed inside goes to a file; ``tell`` still reaches the user."""
    with open(path, "w") as file, contextlib.redirect_stdout(file):
        yield


def silence_console() -> None:
    """Detectron2's log of several hundred lines stays in log.txt; warnings are still shown."""
    for name in ("detectron2", "fvcore", "detr"):
        for handler in logging.getLogger(name).handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)


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
