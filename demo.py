#!/usr/bin/env python3
"""Detects objects in images and draws them, with the flags of Detectron2's own demo.

python demo.py --config-file configs/COCO-Detection/detr_R_50.yaml --input photo.jpg --output predictions \
    --opts MODEL.WEIGHTS detr://detr_R_50
"""

import argparse
import glob
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import ColorMode, Visualizer

import detr  # noqa: F401  explains how to install Detectron2 where it is missing
from detr.data.images import read_image
from detr.engine.defaults import check_config, load_config
from detr.errors import InputError, exit_with_one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    parser.add_argument("--input", required=True, nargs="+", help="image files, or patterns such as 'photos/*.jpg'")
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="folder of the drawn images; for one image also a file name"
    )
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, metavar="P", help="least score of an object (%(default)s)"
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values, at the end")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 where a file is no image."""
    args = parse_args(argv)
    paths = [path for pattern in args.input for path in (sorted(glob.glob(pattern)) or [pattern])]
    cfg = load_config(args.config_file, args.opts)
    check_config(cfg, training=False)
    cfg.MODEL.DETR.INSTANCE_SCORE_THRESHOLD = args.confidence_threshold
    cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD = args.confidence_threshold
    targets = choose_targets(paths, Path(args.output))
    predictor = DefaultPredictor(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__unused")
    failed = 0
    for path, target in zip(paths, targets, strict=True):
        try:
            image = read_image(path, "BGR")
        except InputError as error:
            print(f"{path} is skipped: {error}", file=sys.stderr)
            failed += 1
            continue
        prediction = predictor(image)
        target.parent.mkdir(parents=True, exist_ok=True)
        draw(image[:, :, ::-1], prediction, metadata).save(str(target))
        count = len(prediction["panoptic_seg"][1] if "panoptic_seg" in prediction else prediction["instances"])
        print(f"{path}: {count} {'segments' if 'panoptic_seg' in prediction else 'objects'} -> {target}")
    return int(failed > 0)


def choose_targets(paths: list[str], output: Path) -> list[Path]:
    """The file to write for each image: no two alike. Raises InputError where one is an input."""
    if output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir():
        if len(paths) > 1:
            raise InputError(f"--output {output} is one file, but --input names {len(paths)} images: name a folder")
        targets = [output]
    else:
        if output.exists() and not output.is_dir():
            raise InputError(f"--output {output} is a file: name a folder")
        used: Counter[str] = Counter()
        targets = []
        for path in paths:
            stem = Path(path).stem
            used[stem] += 1
            targets.append(output / (f"{stem}.png" if used[stem] == 1 else f"{stem}_{used[stem]}.png"))
    overwritten = {os.path.realpath(path) for path in paths} & {os.path.realpath(target) for target in targets}
    if overwritten:
        raise InputError(f"--output would write over {min(overwritten)}: name another folder")
    return targets


def draw(image: np.ndarray, prediction: dict[str, Any], metadata: Metadata) -> Any:
    """image: (H, W, 3) uint8, RGB; prediction: as ``Detr`` returns it. Returns Detectron2's VisImage."""
    visualizer = Visualizer(image, metadata, instance_mode=ColorMode.IMAGE)
    if "panoptic_seg" in prediction:
        segmentation, segments = prediction["panoptic_seg"]
        return visualizer.draw_panoptic_seg_predictions(segmentation.to("cpu"), segments)
    return visualizer.draw_instance_predictions(prediction["instances"].to("cpu"))


if __name__ == "__main__":
    with exit_with_one_line():
        sys.exit(main())
