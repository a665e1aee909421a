#!/usr/bin/env python3
r"""Exports a DETR to ONNX, OpenVINO, TorchScript or torch.export, and checks what it wrote.

python tools/export_model.py --model output/mine/model_best.pth --format onnx --output mine_onnx
python tools/export_model.py --config-file CFG --format onnx --output detr_onnx MODEL.WEIGHTS model.pth
python tools/export_model.py --model detr_R_50 --format openvino --output detr_int8 --int8 \
    --calibration coco_2017_train --evaluate coco_2017_val --max-drop 0.5
"""

import argparse

import detr  # noqa: F401  explains how to install Detectron2 where it is missing
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.export import FORMATS, Reduction, export
from detr.model_config import config_of


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="a released model's name, or a checkpoint with its config in it")
    parser.add_argument("--config-file", default="", help="the YAML file of the model, for other weights")
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, help="the folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model in that folder")
    parser.add_argument("--int8", action="store_true", help="compute in int8; for onnx and openvino")
    parser.add_argument("--calibration", metavar="DATASET", default="", help="with --int8: images to calibrate with")
    parser.add_argument("--images", type=int, help="how many of them (default: 300)")
    parser.add_argument(
        "--weights", default="float32", choices=("float32", "float16", "bfloat16"), help="how weights are stored"
    )
    parser.add_argument("--evaluate", metavar="DATASET", default="", help="report AP, and PQ, before and after")
    parser.add_argument(
        "--max-drop", type=float, help="points that --int8 may cost: layers stay in float until this holds"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.model and not args.config_file:
        raise InputError(
            "no model is named: give a name or a checkpoint with --model, or its config with --config-file"
        )
    cfg = config_of(args.model, args.config_file, args.opts)
    if args.images is not None and not args.int8:
        raise InputError("--images is for --int8: give both or none")
    images = Reduction.images if args.images is None else args.images
    reduction = Reduction(args.int8, args.calibration, images, args.weights, args.evaluate, args.max_drop)
    report = export(cfg, args.output, args.format, args.overwrite, reduction)
    for name, value in report.rows:
        print(f"{name:<8}  {value}", flush=True)


if __name__ == "__main__":
    with exit_with_one_line():
        main()
