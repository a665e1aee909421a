#!/usr/bin/env python3
"""Exports a DETR to ONNX, OpenVINO, TorchScript or torch.export, and checks what it wrote.

python tools/export_model.py --config-file CFG --format onnx --output detr_onnx MODEL.WEIGHTS model.pth
"""

import argparse

import detr  # noqa: F401  explains how to install Detectron2 where it is missing
from detr.engine.defaults import load_config
from detr.errors import OneLineParser, exit_with_one_line
from detr.export import FORMATS, export


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the YAML file of the model")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model in that folder")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    report = export(load_config(args.config_file, args.opts), args.output, args.format, args.overwrite)
    for name, value in report.rows:
        print(f"{name:<7}  {value}", flush=True)


if __name__ == "__main__":
    with exit_with_one_line():
        main()
