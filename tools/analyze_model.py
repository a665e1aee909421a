#!/usr/bin/env python3
"""Tells how large a model is: parameters, multiplications and the memory of training, part by part.

python tools/analyze_model.py --config-file configs/COCO-Detection/detr_R_50.yaml
python tools/analyze_model.py --config-file configs/COCO-PanopticSegmentation/detr_R_50.yaml --queries-kept 20 --batch 2

Weights and data are not needed.
"""

import argparse
import dataclasses
import json
import textwrap
from typing import Any

import detr  # noqa: F401  says how to install Detectron2 where it is missing
from detr.analysis import Analysis, Part, analyze
from detr.engine.defaults import load_config
from detr.errors import InputError, exit_with_one_line

MIB = 2**20
HEADER = ("part", "parameters", "trained", "GMACs", "by fvcore", "MiB kept")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    for line in [*table(analysis), "", *legend(args, analysis)]:
        print(line)


def table(analysis: Analysis) -> list[str]:
    rows = [HEADER, *(row(name, part) for name, part in analysis.parts.items()), row("total", analysis.total)]
    widths = [max(len(x[column]) for x in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            [cells[0].ljust(widths[0]), *(x.rjust(width) for x, width in zip(cells[1:], widths[1:], strict=True))]
        )
        for cells in rows
    ]
    rule = "-" * len(lines[0])
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def row(name: str, part: Part) -> tuple[str, ...]:
    return (
        name,
        f"{part.parameters:,}",
        f"{part.trainable:,}",
        f"{part.macs / 1e9:.2f}",
        f"{part.macs_fvcore / 1e9:.2f}",
        f"{part.kept / MIB:.1f}",
    )


def legend(args: argparse.Namespace, analysis: Analysis) -> list[str]:
    height, width = args.size
    masks = objects = repeats = ""
    if "mask head" in analysis.parts:
        masks = f", with the masks of {'all' if args.queries_kept is None else args.queries_kept} queries"
        objects = f" with {args.objects} objects an image"
        repeats = " There, every query's mask repeats what depends on the image alone."
    texts = {
        "weights": f"{analysis.checkpoint / MIB:.1f} MiB in a checkpoint, where frozen norms count: their values "
        "are no parameters.",
        "GMACs": "10^9 multiplications with their additions, in convolutions and matrix products, of one image of "
        f"{height} x {width} at inference{masks}.",
        "by fvcore": "the same as fvcore counts them in the authors' code, for comparison. It does not see "
        f"{analysis.unseen_macs / 1e9:.2f} of them, in attention (baddbmm).{repeats}",
        "MiB kept": f"for the backward pass of a training step of batch {args.batch}{objects}, in single precision on "
        "a GPU. Weights, gradients and the optimizer's state come on top.",
    }
    indent = max(map(len, texts)) + 2
    return [
        textwrap.fill(f"{name:<{indent}}{text}", 100, subsequent_indent=" " * indent) for name, text in texts.items()
    ]


def write_json(args: argparse.Namespace, analysis: Analysis) -> None:
    content: dict[str, Any] = {
        "config_file": args.config_file,
        "opts": args.opts,
        "size": list(args.size),
        "batch": args.batch,
        "objects": args.objects,
        "queries_kept": args.queries_kept,
        "parts": {name: dataclasses.asdict(part) for name, part in analysis.parts.items()},
        "total": dataclasses.asdict(analysis.total),
        "checkpoint": analysis.checkpoint,
        "unseen_macs": analysis.unseen_macs,
    }
    try:
        with open(args.json, "w") as file:
            json.dump(content, file, indent=2)
    except OSError as error:
        raise InputError(f"--json {args.json} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    with exit_with_one_line():
        main()
