#!/usr/bin/env python3
"""Converts DETR checkpoints between the authors' code, Detectron2 and transformers.

python converter.py --source_model detr-r50-e632da11.pth --output_model detr_R_50.pth
python converter.py --source_model detr_R_50 --output_model detr-resnet-50 --to transformers --verify
"""

import argparse
import sys

import detr  # noqa: F401  explains how to install Detectron2 where it is missing
from detr.convert.conversion import BACKBONES, TARGETS, Request, convert
from detr.errors import OneLineParser, exit_with_one_line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--source_model",
        required=True,
        help="a file, a folder that transformers wrote, a URL, the name of a released model such as detr_R_50, or "
        "torchvision://resnet101 for a backbone alone",
    )
    parser.add_argument("--output_model", required=True, help="the file to write; for transformers a folder")
    parser.add_argument("--to", choices=TARGETS, default="detectron2", help="the format to write (%(default)s)")
    parser.add_argument("--num-classes", type=_positive, metavar="N", help="classes of the output, without no-object")
    parser.add_argument("--num-queries", type=_positive, metavar="N", help="object queries of the output")
    parser.add_argument("--dc5", action="store_true", help="the weights are of a DC5 model; the tensors do not show it")
    parser.add_argument(
        "--heads", type=_positive, metavar="N", help="attention heads; the tensors do not show them either"
    )
    parser.add_argument("--own-classes", action="store_true", help="80, 91, 133 or 250 classes are not COCO's")
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="of a file with several models: ema, model, or a name that the report lists (an EMA is taken by default)",
    )
    parser.add_argument("--backbone", choices=BACKBONES, help="for transformers: its own ResNet, or timm's")
    parser.add_argument("--verify", action="store_true", help="run source and output, and compare their outputs")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
    parser.add_argument(
        "--unsafe-load", action="store_true", help="unpickle without restriction: only for an old file of your own"
    )
    args = parser.parse_args(argv)
    if args.verify and (args.num_classes or args.num_queries):
        parser.error("--verify compares whole models: convert without --num-classes and --num-queries to use it")
    if args.backbone and args.to != "transformers":
        parser.error("--backbone is for --to transformers")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100_000:
        raise argparse.ArgumentTypeError("must be a number from 1 to 100000")
    return int(text)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.unsafe_load:
        print(
            "WARNING: --unsafe-load runs whatever code the file holds, with your rights. Go on only with a file that "
            "you made yourself.",
            file=sys.stderr,
        )
    report = convert(
        Request(
            source=args.source_model,
            output=args.output_model,
            to=args.to,
            num_classes=args.num_classes,
            num_queries=args.num_queries,
            backbone=args.backbone,
            dc5=args.dc5,
            heads=args.heads,
            own_classes=args.own_classes,
            weights=args.weights,
            overwrite=args.overwrite,
            unsafe=args.unsafe_load,
        )
    )
    print_rows(report.rows)
    if args.verify:
        from detr.convert.verification import verify  # it imports models, which takes seconds

        print_rows([("verified", verify(report.source, report.output, report.info))])


def print_rows(rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        print(f"{name:<11}  {value}", flush=True)


if __name__ == "__main__":
    with exit_with_one_line():
        main()
