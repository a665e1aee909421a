#!/usr/bin/env python3
"""Converts an original DETR detection checkpoint into one for Detectron2.

python converter.py --source_model detr-r50-e632da11.pth --output_model detr_R_50.pth
"""

import argparse
import os

import detr  # noqa: F401  says how to install Detectron2 where it is missing
from detr.checkpoint.files import load_file, save_file
from detr.checkpoint.formats import is_original_detection, original_to_detectron2
from detr.errors import InputError, exit_with_one_line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source_model", required=True, help="the original's .pth file")
    parser.add_argument("--output_model", required=True, help="where the converted .pth file goes")
    parser.add_argument("--overwrite", action="store_true", help="replace an output file that exists")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if os.path.exists(args.output_model) and not args.overwrite:
        raise InputError(f"{args.output_model} exists: name another --output_model, or add --overwrite")
    content = load_file(args.source_model)
    state = content.get("model", content)
    if not is_original_detection(state):
        raise InputError(f"{args.source_model} is not an original DETR detection checkpoint")
    converted = original_to_detectron2(state)
    save_file({"model": converted}, args.output_model)
    before, after = (s["class_embed.bias"].shape[0] for s in (state, converted))
    print(f"{args.source_model}: {len(converted)} tensors mapped, class rows {before} -> {after}")
    print(f"written: {args.output_model}")


if __name__ == "__main__":
    with exit_with_one_line():
        main()
