"""The curves of a training, for the page."""

from collections.abc import Mapping

import numpy as np

from detr.engine.metrics_files import Metrics
from detr.pictures.curves import RESULTS
from detr.report.figures import line_chart

MOST_POINTS = 300  # of a curve, whose neighbors are averaged where there are more

LOSSES = {"total_loss": "training loss", "val_loss": "validation loss"}


def training_figures(metrics: Metrics, dataset: str) -> list[tuple[str, str]]:
    """A caption and an SVG each: losses, results on the data set, and the learning rate, as far as they were logged.

    metrics: as of a ``Run``
    """
    losses = _lines(metrics, LOSSES)
    # With several test sets, their names precede the metrics.
    results = _lines(metrics, RESULTS.keys) or _lines(
        metrics, {f"{dataset}/{key}": label for key, label in RESULTS.keys.items()}
    )
    rate = _lines(metrics, {"lr": "learning rate"})
    figures = []
    for lines, caption, percent in (
        (losses, f"{' and '.join(losses)}, summed over all decoder layers".capitalize(), False),
        (results, f"Results on {dataset}, in percent", True),
        (rate, "Learning rate", False),
    ):
        if lines:
            svg = line_chart(lines, title=caption, x_label="iteration", percent=percent)
            figures.append((caption, svg))
    return figures


def _lines(metrics: Metrics, labels: Mapping[str, str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """label -> iterations and values, both (n,), of the keys that were logged."""
    lines = {}
    for key, label in labels.items():
        table = np.array(list(metrics.get(key, {}).items()), dtype=float).reshape(-1, 2)
        table = table[np.isfinite(table).all(1)]
        if len(table):
            pieces = np.array_split(table, min(len(table), MOST_POINTS))
            means = np.array([piece.mean(0) for piece in pieces])
            lines[label] = (means[:, 0], means[:, 1])
    return lines
