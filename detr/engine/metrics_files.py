"""The metrics of a training, from Detectron2's ``metrics.json``: one JSON object a line."""

import json
import math
import os
from pathlib import Path

from detr.errors import InputError

FILE = "metrics.json"

# key -> {iteration: value}, in ascending order
Metrics = dict[str, dict[int, float]]


def metrics_file(run: str) -> Path:
    """The file of a run, which is named by its folder or by the file itself. Raises InputError where there is none."""
    path = Path(run)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise InputError(f"{path} does not exist: name the OUTPUT_DIR of a training, or its {FILE}")
    return path


def read_metrics(run: str) -> Metrics:
    """The numbers of a run. Raises InputError for a file that is missing or holds no metrics."""
    path = metrics_file(run)
    metrics = parse_metrics(path)
    if not metrics:
        reason = "is empty, since the training has just begun" if not os.path.getsize(path) else "holds no metrics"
        raise InputError(f"{path} {reason}: name the {FILE} of a training that has written some")
    return metrics


def parse_metrics(path: Path) -> Metrics:
    """The numbers of a file; NaN where a value is not finite.

    A training that was resumed repeats iterations: the later ones count. A line that a killed training has left
    unfinished is skipped.
    """
    metrics: Metrics = {}
    before = -1
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
                iteration = row.pop("iteration")
            except (ValueError, KeyError, AttributeError, TypeError):
                continue
            if not isinstance(iteration, int):
                continue
            if iteration < before:
                metrics = {key: {i: x for i, x in curve.items() if i < iteration} for key, curve in metrics.items()}
            before = iteration
            for key, value in row.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    metrics.setdefault(key, {})[iteration] = value if math.isfinite(value) else math.nan
    return {key: curve for key, curve in metrics.items() if curve}


def run_names(runs: list[str]) -> list[str]:
    """A short name for each run: its folder's, with those above it where several have the same name."""
    folders = [Path(os.path.abspath(run)) for run in runs]
    folders = [path.parent if path.name == FILE else path for path in folders]
    for depth in range(1, max(len(path.parts) for path in folders) + 1):
        names = ["/".join(path.parts[-depth:]) for path in folders]
        if len(set(names)) == len(set(folders)):
            break
    return names
