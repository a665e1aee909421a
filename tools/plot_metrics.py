#!/usr/bin/env python3
"""Draws the curves of one or more trainings: losses, AP, learning rate and what else was measured.

python tools/plot_metrics.py output/first output/second
python tools/plot_metrics.py output/first output/second --keys loss_giou,loss_ce --output losses.pdf

A training may still be running, and be one of another model of Detectron2.
"""

import argparse
import math

from tabulate import tabulate

import detr  # noqa: F401  says how to install Detectron2 where it is missing
from detr.engine.metrics_files import Metrics, metrics_file, read_metrics, run_names
from detr.errors import InputError, OneLineParser, exit_with_one_line
from detr.pictures.curves import PANELS, RESULTS, curves_of, panels_of, plot_runs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a training, or its metrics.json")
    parser.add_argument(
        "--output", default="curves.png", metavar="FILE", help="the picture (%(default)s); also .pdf, .svg"
    )
    parser.add_argument("--keys", metavar="KEY,KEY", help="metrics to draw instead, a panel each")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if len({metrics_file(run).resolve() for run in args.runs}) < len(args.runs):
        raise InputError("the same run is named twice: name each once")
    runs = dict(zip(run_names(args.runs), map(read_metrics, args.runs), strict=True))
    panels = panels_of([key.strip() for key in args.keys.split(",")], runs) if args.keys else PANELS
    plot_runs(runs, args.output, panels)
    print(summary(runs))
    print(f"curves: {args.output}")


def summary(runs: dict[str, Metrics]) -> str:
    """A row for each run: its last loss, and of each result the best and its iteration."""
    headers, rows = ["run", "iterations", "loss"], []
    results = {key: label for key, label in RESULTS.keys.items() if any(curves_of(key, x) for x in runs.values())}
    for name, metrics in runs.items():
        losses = metrics.get("total_loss", {})  # the last evaluation counts as one iteration later
        row = [name, *((max(losses) + 1, f"{losses[max(losses)]:.2f}") if losses else (None, None))]
        for key in results:
            points = [(y, i) for _, curve in curves_of(key, metrics) for i, y in curve.items() if not math.isnan(y)]
            row.append("{:.1f} at {}".format(*max(points)) if points else None)
        rows.append(row)
    headers += [f"best {label}" for label in results.values()]
    return str(tabulate(rows, headers=headers, missingval="-", disable_numparse=True))


if __name__ == "__main__":
    with exit_with_one_line():
        main()
