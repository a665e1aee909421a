#!/usr/bin/env python3
"""Tells where the time of a model goes on this machine, part by part.

python tools/profile_model.py --config-file configs/COCO-Detection/detr_R_50.yaml
python tools/profile_model.py --config-file configs/COCO-Detection/detr_R_50.yaml --training --trace trace.json.gz

Weights and data are not needed. https://ui.perfetto.dev opens the trace.
"""

import argparse
import os

from tabulate import SEPARATING_LINE, tabulate

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch is imported: the profiler reports on itself

import detr  # noqa: F401  says how to install Detectron2 where it is missing
from detr.engine.defaults import load_config
from detr.engine.machine import fit_machine
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.profiling import Profile, Time, profile_model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the model's config")
    parser.add_argument(
        "--size", nargs=2, type=int, default=(800, 1066), metavar=("H", "W"), help="of the images, in pixels (800 1066)"
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images in a step (%(default)s)")
    parser.add_argument("--training", action="store_true", help="training steps, instead of inference")
    parser.add_argument("--steps", type=int, default=5, metavar="N", help="how many are measured (%(default)s)")
    parser.add_argument("--trace", metavar="FILE", help="write a trace there, compressed if the name ends in .gz")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, as for train_net.py")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.trace:
        check_folder(args.trace)
    cfg = load_config(args.config_file, args.opts)
    fit_machine(cfg)
    found = profile_model(cfg, size=tuple(args.size), batch=args.batch, training=args.training, steps=args.steps)
    if args.trace:
        write_trace(found, args.trace)
    cuda = cfg.MODEL.DEVICE.startswith("cuda")
    print(table(found, cuda), *legend(args, found, cuda), sep="\n")


def check_folder(path: str) -> None:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or os.path.isdir(path):
        raise InputError(f"--trace {path} cannot be written: it must be a file in a folder that is there")


def write_trace(found: Profile, path: str) -> None:
    try:
        found.recorded.export_chrome_trace(path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"--trace {path} cannot be written: {error}") from error


def table(found: Profile, cuda: bool) -> str:
    """On a GPU with the time and the number of its kernels, of which the share is."""
    total = Time(found.total, *(sum(getattr(x, name) for x in found.parts.values()) for name in ("device", "launches")))
    rows = []
    for name, part in (*found.parts.items(), ("total", total)):
        share = part.device / max(total.device, 1e-9) if cuda else part.host / total.host
        on_gpu = [f"{part.device:.2f}", f"{part.launches:.0f}"] if cuda else []
        rows.append([name, f"{part.host:.2f}", *on_gpu, f"{share:.1%}"])
    rows.insert(-1, SEPARATING_LINE)  # type: ignore[arg-type]
    headers = ("part", "ms", *(("GPU ms", "launches") if cuda else ()), "share")
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * (len(headers) - 1)))


def legend(args: argparse.Namespace, found: Profile, cuda: bool) -> list[str]:
    work = "training step" if args.training else "inference"
    lines = [
        "",
        f"ms     of the host, for a batch of {args.batch} of {args.size[0]} x {args.size[1]}, {work}: means of "
        f"{args.steps} steps",
        f"total  under the profiler; without it a step takes {found.plain:.2f} ms",
        "rest   what is in no part" + (", such as waiting for the GPU" if cuda else ""),
    ]
    return lines


if __name__ == "__main__":
    with exit_with_one_line():
        main()
