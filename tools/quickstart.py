#!/usr/bin/env python3
"""Trains a small DETR on drawn shapes on a laptop, evaluates it, and draws its predictions beside the ground truth.

python tools/quickstart.py [--panoptic] [--verbose] [--output FOLDER] [--resume] [KEY VALUE ...]
"""

import argparse
import contextlib
import itertools
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from detr.errors import OneLineParser, exit_with_one_line

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs" / "quickstart"
METRICS = (
    ("box AP", "bbox", "AP"),
    ("AP50", "bbox", "AP50"),
    ("mask AP", "segm", "AP"),
    ("PQ", "panoptic_seg", "PQ"),
)


def main() -> None:
    args = parse_args()
    from detr.data.shapes import ensure_shapes
    from detr.engine import Trainer, setup

    output = last_folder(args.output) if args.resume else free_folder(args.output)
    config = CONFIGS / ("shapes_panoptic.yaml" if args.panoptic else "shapes_detection.yaml")
    what, minutes = ("boxes, masks and panoptic maps", 8) if args.panoptic else ("boxes", 6)
    print(
        f"Training a small DETR on drawn shapes, for {what}, on the CPU: about {minutes} minutes on two cores.\n"
        "The data set, drawn at the first time in half a minute: ",
        end="",
        flush=True,
    )
    print(ensure_shapes(), flush=True)
    opts = ["OUTPUT_DIR", str(output), *args.opts]
    cfg = setup(
        argparse.Namespace(
            config_file=str(config), opts=opts, eval_only=False, resume=args.resume, verbose=args.verbose
        )
    )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    start = time.perf_counter()
    results = trainer.train() or {}
    taken = (time.perf_counter() - start) / 60
    from detr.pictures.curves import plot_training
    from detr.pictures.sheets import predictions_sheet, save_picture

    plot_training(str(output / "metrics.json"), str(output / "training.png"))
    save_picture(predictions_sheet(cfg, trainer.model), str(output / "predictions.png"))
    numbers = ", ".join(f"{name} {results[task][key]:.1f}" for name, task, key in METRICS if task in results)
    evaluation = [sys.executable, str(ROOT / "train_net.py"), "--eval-only", "--config-file", str(config)]
    report = [sys.executable, str(ROOT / "tools" / "report.py"), str(output)]
    print(
        f"Done in {taken:.1f} minutes: {numbers} on {cfg.DATASETS.TEST[0]}\n"
        f"  {output / 'predictions.png'}  ground truth beside predictions\n"
        f"  {output / 'training.png'}     loss and accuracy against iterations\n"
        f"  {output / 'log.txt'}          the whole log\n"
        "The weights can be evaluated again with\n"
        f"  {shlex.join([*evaluation, *args.opts, 'MODEL.WEIGHTS', str(output / 'model_final.pth')])}\n"
        "A page on what the model gets wrong, and what helps, is written by\n"
        f"  {shlex.join(report)}"
    )


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--panoptic", action="store_true", help="masks and panoptic maps too")
    parser.add_argument("--verbose", action="store_true", help="Detectron2's whole log on the terminal too")
    parser.add_argument("--output", default="output/quickstart", help="a folder; where it exists, a number is added")
    parser.add_argument("--resume", action="store_true", help="go on with the last training in --output")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args()


def numbered(wanted: str) -> Iterator[Path]:
    """``wanted``, wanted_2, wanted_3, ..."""
    yield Path(wanted)
    yield from (Path(f"{wanted}_{number}") for number in itertools.count(2))


def free_folder(wanted: str) -> Path:
    """The first of the numbered ones that does not exist; it is made."""
    for folder in numbered(wanted):
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def last_folder(wanted: str) -> Path:
    """The last of the numbered ones that exist, or ``wanted``."""
    there = list(itertools.takewhile(Path.is_dir, numbered(wanted)))
    return there[-1] if there else Path(wanted)


if __name__ == "__main__":
    with exit_with_one_line("the same command with --resume goes on from the last checkpoint"):
        main()
