#!/usr/bin/env python3
"""Writes one HTML page on what an evaluated run gets right and wrong: where it fails, why, and what to do.

python tools/report.py output/quickstart
python tools/report.py output/mine --annotations mine/val.json --images mine/images
"""

import argparse
import os

import detr  # noqa: F401  says how to install Detectron2 where it is missing
from detr.checkpoint.files import save_text
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.report import analyze, read_run
from detr.report.summary import summarize
from detr.report.worst import draw_pair

FIRST = 3  # findings, on the terminal


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the folder of the run, OUTPUT_DIR of its config")
    parser.add_argument("--output", metavar="FILE", help="the page (RUN/report.html)")
    parser.add_argument("--dataset", default="", metavar="NAME", help="which data set, where several were evaluated")
    parser.add_argument("--predictions", default="", metavar="FILE", help="results elsewhere than in RUN/inference")
    parser.add_argument("--annotations", default="", metavar="FILE", help="a data set of your own, in COCO's format")
    parser.add_argument("--images", default="", metavar="FOLDER", help="the images of --annotations")
    parser.add_argument("--worst", type=int, default=12, metavar="N", help="images with pictures (%(default)s)")
    args = parser.parse_args(argv)
    if args.worst < 0:
        raise InputError(f"--worst is {args.worst}: it must be 0 or more")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from detr.report.page import headline, render  # an extra, missed before anything is read

    output = args.output or os.path.join(args.run, "report.html")
    run = read_run(args.run, args.dataset, args.predictions, args.annotations, args.images)
    report = analyze(run, args.worst)
    pairs = [draw_pair(image, run.class_names) for image in report.worst]
    save_text(render(run, report, summarize(run.config, run.config_file), pairs), output)
    print(f"{output}: {headline(report)} on {report.dataset}")
    for finding in report.findings[:FIRST]:
        print(f"  {finding.text} {finding.action}")


if __name__ == "__main__":
    with exit_with_one_line():
        main()
