#!/usr/bin/env python3
"""Exports a DETR to ONNX, OpenVINO, TorchScript or torch.export, and checks what it wrote.

python tools/export_model.py --model output/mine/model_best.pth --format onnx --output mine_onnx
python tools/export_model.py --config-file CFG --format onnx --output detr_onnx MODEL.WEIGHTS model.pth
"""

import argparse

import detr  # noqa: F401  explains how to install Detectron2 where it is missing
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.export import FORMATS, export
from detr.model_config import config_of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a released model's name, or a checkpoint with its config in it")
    parser.add_argument("--config-file", default="", help="the YAML file of the model, for other weights")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model in that folder")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.model and not args.config_file:
        raise InputError(
            "no model is named: give a name or a checkpoint with --model, or its config with --config-file"
        )
    cfg = config_of(args.model, args.config_file, args.opts)
    report = export(cfg, args.output, args.format, args.overwrite)
    for name, value in report.rows:
        print(f"{name:<7}  {value}", flush=True)


if __name__ == "__main__":
    with exit_with_one_line():
        main()
