#!/usr/bin/env python3
"""Detects objects in images and draws them, with the flags of Detectron2's own demo.

python demo.py --config-file configs/COCO-Detection/detr_R_50.yaml --input photo.jpg --output predictions \
    --opts MODEL.WEIGHTS detr://detr_R_50
"""

import argparse
import glob
import sys
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.utils.visualizer import ColorMode, Visualizer

import detr  # noqa: F401  explains how to install Detectron2 where it is missing
from detr.engine.defaults import check_config, load_config
from detr.errors import InputError, exit_with_one_line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the model's config")
    parser.add_argument("--input", required=True, nargs="+", help="image files, or patterns such as 'photos/*.jpg'")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the drawn images go")
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
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file: name a folder")
    predictor = DefaultPredictor(cfg)
    metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__unused")
    output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in paths:
        try:
            image = read_image(path, format="BGR")
        except Exception as error:  # PIL raises many kinds
            print(f"{path} is skipped: it cannot be read as an image ({error})", file=sys.stderr)
            failed += 1
            continue
        prediction = predictor(image)
        target = free_path(output / f"{Path(path).stem}.png", path)
        draw(image[:, :, ::-1], prediction, metadata).save(str(target))
        print(f"{path}: {len(prediction['instances'])} objects -> {target}")
    return int(failed > 0)


def free_path(target: Path, source: str) -> Path:
    """The file to write. Raises InputError where that is the image itself."""
    if target.exists() and target.samefile(source):
        raise InputError(f"--output would write over {source}: name another folder")
    return target


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
