#!/usr/bin/env python3
"""Draws a data set's images with their boxes and masks, as a DETR is shown them in training, and lists them.

python tools/browse_data.py --data my_photos
python tools/browse_data.py --config-file configs/quickstart/shapes_panoptic.yaml --split val --number 16
python tools/browse_data.py --data my_photos --source annotations --start 100

FOLDER may be of COCO, YOLO (data.yaml) or Pascal VOC files, also as Roboflow exports them.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from detr import model_zoo
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.formats import recognize, register_any
from detr.data.loading import load_dataset
from detr.data.metadata import class_names, is_panoptic
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine.defaults import load_config
from detr.engine.registration import register_datasets
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.evaluation.evaluators import is_detr
from detr.finetuning import BASE_MODEL
from detr.pictures.browsing import Item, View, has_segmentation, title, view_annotations, view_targets
from detr.pictures.sheets import PICTURES, captioned, save_picture, sheet

NAME = "browsed"  # as the data set of --data is registered
COLUMNS = 4


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="FOLDER", help="the data set: a folder, a COCO JSON file or YOLO's data.yaml")
    parser.add_argument("--config-file", default="", help="a config: its data sets, without --data, and augmentations")
    parser.add_argument("--split", choices=("train", "val", "test"), default="train", help="(%(default)s)")
    parser.add_argument(
        "--source", choices=("mapper", "annotations"), default="mapper", help="as in training, or as annotated (mapper)"
    )
    parser.add_argument("--start", type=int, default=0, metavar="N", help="the first image, counted from 0")
    parser.add_argument("--number", type=int, default=32, metavar="N", help="how many images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the augmentations (%(default)s)")
    parser.add_argument("--output", default="output/browse", metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys, as for train_net.py")
    args = parser.parse_intermixed_args(argv)
    if not (args.data or args.config_file):
        raise InputError("name a data set with --data FOLDER, or a config with --config-file")
    for name, least in (("start", 0), ("number", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} is {getattr(args, name)}: it must be at least {least}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cfg, names = find_data(args)
    dicts = [x for name in names for x in load_dataset(name)]
    shown = args.data or ", ".join(names)
    if args.start >= len(dicts):
        raise InputError(f"--start {args.start}, but {shown} has {len(dicts)} images: name a smaller number")
    if args.data:
        fit_to_data(cfg, names[0], dicts, args.opts)
    view = viewer(cfg, args, names[0])
    chosen = list(enumerate(dicts))[args.start : args.start + args.number]
    for begin in range(0, len(chosen), PICTURES):
        write_page(chosen[begin : begin + PICTURES], view, Path(args.output, f"{args.split}_{chosen[begin][0]:05}.png"))
    print(f"{len(chosen)} of the {len(dicts)} images of {shown}")


def find_data(args: argparse.Namespace) -> tuple[CfgNode, tuple[str, ...]]:
    """The config, and the names of the registered data sets. Raises InputError where there are none."""
    cfg = load_config(args.config_file or model_zoo.config_file(BASE_MODEL), args.opts)
    if not is_detr(cfg):
        raise InputError(
            f"{args.config_file} is of a {cfg.MODEL.META_ARCHITECTURE}, whose images Detectron2's mapper makes: use "
            "Detectron2's tools/visualize_data.py"
        )
    if args.data:
        register_any(NAME, args.data, args.split if len(recognize(args.data).splits) > 1 else "")
        return cfg, (NAME,)
    register_datasets(cfg)
    names = cfg.DATASETS.TRAIN if args.split == "train" else cfg.DATASETS.TEST
    if not names:
        raise InputError(f"{args.config_file} has no data set for --split {args.split}: name one in DATASETS")
    return cfg, tuple(names)


def fit_to_data(cfg: CfgNode, name: str, dicts: list[Item], opts: list[str]) -> None:
    """Sets the number of classes, and masks where every object has one; what the user has set stays."""
    keys = {opt.partition("=")[0] for opt in opts}
    if "MODEL.DETR.NUM_CLASSES" not in keys:
        cfg.MODEL.DETR.NUM_CLASSES = len(class_names(name) or ())
    if "MODEL.MASK_ON" not in keys:
        objects = [obj for x in dicts for obj in x.get("annotations", ())]
        cfg.MODEL.MASK_ON = bool(objects) and all(map(has_segmentation, objects))


def viewer(cfg: CfgNode, args: argparse.Namespace, name: str) -> Callable[[int, Item], View]:
    """From the number of an image and its dict to what is drawn."""
    names = class_names(name)
    if args.source == "annotations":
        return lambda _, x: view_annotations(x, names)
    kind = DetrPanopticMapper if is_panoptic(name) else DetrDatasetMapper
    options: dict[str, Any] = kind.from_config(cfg, is_train=args.split == "train")
    mapper = kind(**{**options, "is_train": True})  # with targets in evaluation's size too
    view = partial(view_targets, mapper=mapper, image_format=cfg.INPUT.FORMAT, names=names)
    return lambda index, x: view(x, seed=args.seed + index)


def write_page(page: list[tuple[int, Item]], view: Callable[[int, Item], View], path: Path) -> None:
    """A line for each image; those that can be drawn go on one sheet."""
    pictures = []
    for index, x in page:
        try:
            drawn = view(index, x)
        except InputError as error:
            print(f"{index:6}  error: {error}")
            continue
        pictures.append(captioned(drawn.picture, title(index, x, drawn)))
        print(f"{index:6}  {x['file_name']}: {drawn.line()}")
    if not pictures:
        return
    save_picture(sheet(pictures, COLUMNS), str(path))
    print(f"sheet   {path}")


if __name__ == "__main__":
    with exit_with_one_line():
        main()
