#!/usr/bin/env python3
"""Tells how large a model is: parameters and multiplications, part by part.

python tools/analyze_model.py --config-file configs/COCO-Detection/detr_R_50.yaml
python tools/analyze_model.py --config-file configs/COCO-PanopticSegmentation/detr_R_50.yaml --queries-kept 20 --batch 2

Weights and data are not needed.
"""

import argparse
import dataclasses
import json

from tabulate import SEPARATING_LINE, tabulate

import detr  # noqa: F401  says how to install Detectron2 where it is missing
from detr.analysis import Analysis, analyze
from detr.engine.defaults import load_config
from detr.errors import InputError, OneLineParser, exit_with_one_line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the model's config")
    parser.add_argument(
        "--size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"), help="of the images, in pixels (800 1066)"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in a training step (%(default)s)")
    parser.add_argument(
        "--objects", type=int, default=10, metavar="N", help="objects in a training image (%(default)s)"
    )
    parser.add_argument(
        "--queries-kept", type=int, metavar="N", help="queries whose masks inference makes (all of them, as for AP)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too, in bytes and single operations")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    analysis = analyze(
        cfg, size=tuple(args.size), batch=args.batch, objects=args.objects, queries_kept=args.queries_kept
    )
    if args.json:
        write_json(args, analysis)
    print(table(analysis), *legend(args, analysis), sep="\n")


def table(analysis: Analysis) -> str:
    rows = [
        [name, f"{part.parameters:,}", f"{part.trainable:,}", f"{part.macs / 1e9:.2f}"]
        for name, part in (*analysis.parts.items(), ("total", analysis.total))
    ]
    rows.insert(-1, SEPARATING_LINE)  # type: ignore[arg-type]
    headers = ("part", "parameters", "trained", "GMACs")
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", "right", "right", "right"))


def legend(args: argparse.Namespace, analysis: Analysis) -> list[str]:
    height, width = args.size
    training, weights = f"{analysis.training_macs / 1e9:.2f} GMACs", f"{analysis.checkpoint / 2**20:.1f} MiB"
    masks = objects = ""
    if "mask head" in analysis.parts:
        masks = f", with the masks of {'all' if args.queries_kept is None else args.queries_kept} queries"
        objects = f", with the masks of {args.objects} objects an image"
    return [
        "",
        "GMACs     10^9 multiplications with their additions, in convolutions and matrix products:",
        f"          inference on one image of {height} x {width}{masks}",
        f"training  {training}, forward and backward: one step of batch {args.batch}{objects}",
        f"weights   {weights} in a checkpoint; frozen norms count, whose values are no parameters",
    ]


def write_json(args: argparse.Namespace, analysis: Analysis) -> None:
    content = {
        "config_file": args.config_file,
        "opts": args.opts,
        "size": list(args.size),
        "batch": args.batch,
        "objects": args.objects,
        "queries_kept": args.queries_kept,
        **dataclasses.asdict(analysis),
        "total": dataclasses.asdict(analysis.total),
    }
    try:
        with open(args.json, "w") as file:
            json.dump(content, file, indent=2)
    except OSError as error:
        raise InputError(f"--json {args.json} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    with exit_with_one_line():
        main()
