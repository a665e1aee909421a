"""The course of trainings, as a picture."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from detr.engine.metrics_files import Metrics, read_metrics
from detr.errors import InputError
from detr.pictures.files import write_whole

FEW = 12  # points, up to which they are marked; a line hides them where there are many
SPIKE = 30.0  # a value, relative to the curve's median, from which the axis is logarithmic
MAX_COLUMNS = 4
MARGIN = 1.02  # of an axis, so that what is at its top can be seen
STYLES = ("-", "--", ":", "-.")


class Panel(NamedTuple):
    """title: of the y axis; keys: of metrics -> their labels; top: of the axis, None for the data's"""

    title: str
    keys: Mapping[str, str]
    top: float | None = None


LOSSES = Panel("loss, all decoder layers", {"total_loss": "training", "val_loss": "validation"})
RESULTS = Panel(
    "on the validation set, in percent",
    {"bbox/AP": "box AP", "segm/AP": "mask AP", "panoptic_seg/PQ": "PQ", "bbox/AP50": "box AP50"},
    100,
)
PANELS = (
    LOSSES,
    RESULTS,
    Panel("learning rate", {"lr": ""}),
    Panel("wrong classes of matched queries, in percent", {"class_error": ""}, 100),
    Panel("IoU of matched boxes", {"health/matched_iou": ""}, 1),
    Panel("share of queries", {"health/no_object": "no-object", "health/dead_queries": "dead"}, 1),
    Panel(
        "share of objects with the same query",
        {"health/layer_stability": "as in the layer before", "health/epoch_stability": "as when last seen"},
        1,
    ),
)


def plot_training(metrics_file: str, path: str) -> None:
    """The losses, and AP and PQ, of one training against the iterations. metrics_file: ``metrics.json``"""
    plot_runs({"": read_metrics(metrics_file)}, path, (LOSSES, RESULTS))


def panels_of(keys: Sequence[str], runs: Mapping[str, Metrics]) -> tuple[Panel, ...]:
    """A panel for each key. Raises InputError for one that no run has."""
    known = sorted({key for metrics in runs.values() for key in metrics})
    for key in keys:
        if not any(curves_of(key, metrics) for metrics in runs.values()):
            raise InputError(f"no run has the metric {key}: it must be one of {', '.join(known)}")
    return tuple(Panel(key, {key: ""}) for key in keys)


def plot_runs(runs: Mapping[str, Metrics], path: str, panels: Sequence[Panel] = PANELS) -> None:
    """Curves of one or more runs against the iterations: a color for each run, or for each metric of a single one.

    runs: their names -> metrics; path: of the picture, whose ending is its format
    panels: those that no run has anything for are left out

    Raises InputError where nothing is left, and for a path that cannot be written.
    """
    panels = [x for x in panels if any(curves_of(key, metrics) for key in x.keys for metrics in runs.values())]
    if not panels:
        raise InputError(f"{', '.join(runs)} has no losses, results or learning rate: name metrics with --keys")
    columns = min(len(panels), MAX_COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 4.0 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        draw_panel(axis, panel, runs)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    if len(runs) > 1:
        lines = [Line2D([], [], color=f"C{index % 10}", linewidth=3) for index in range(len(runs))]
        figure.legend(lines, list(runs), loc="outside upper left", ncols=columns, frameon=False)
    save_figure(figure, path)


def draw_panel(axis: Axes, panel: Panel, runs: Mapping[str, Metrics]) -> None:
    """The curves of one panel, with a legend of its metrics where they have names."""
    shown: dict[str, int] = {}  # what a curve is called -> its color or style
    values: list[float] = []
    for number, metrics in enumerate(runs.values()):
        for key, label in panel.keys.items():
            for data_set, curve in curves_of(key, metrics):
                index = shown.setdefault(f"{data_set} {label}".strip(), len(shown))
                color, style = (index, 0) if len(runs) == 1 else (number, index)
                marker = "o" if len(curve) <= FEW else ""
                values += [y for y in curve.values() if math.isfinite(y)]
                axis.plot(list(curve), list(curve.values()), **_look(color, style), marker=marker)
    if any(shown):
        one = len(runs) == 1
        looks = [_look(index, 0) if one else {**_look(0, index), "color": "gray"} for index in shown.values()]
        axis.legend([Line2D([], [], **look) for look in looks], list(shown))
    axis.grid(alpha=0.3)
    axis.set(xlabel="iteration", ylabel=panel.title)
    axis.tick_params(labelbottom=True)  # in every row: the last one may have fewer panels
    if panel.top is not None:
        axis.set_ylim(0, panel.top * MARGIN)
    elif values and min(values) > 0 and max(values) > SPIKE * statistics.median(values):
        axis.set_yscale("log")
    elif values and min(values) >= 0:
        axis.set_ylim(0, None)


def _look(color: int, style: int) -> dict[str, Any]:
    return {"color": f"C{color % 10}", "linestyle": STYLES[style % len(STYLES)], "linewidth": 1.3, "markersize": 4}


def curves_of(key: str, metrics: Metrics) -> list[tuple[str, dict[int, float]]]:
    """The curves of a metric, each with the name of its data set, which is "" where a run has one test set only."""
    return [
        (name.removesuffix(key).rstrip("/"), curve)
        for name, curve in metrics.items()
        if name == key or name.endswith(f"/{key}")
    ]


def save_figure(figure: Figure, path: str) -> None:
    """Writes a figure whole or not at all. Raises InputError where its path cannot be written."""
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path} has no ending of a picture: it must be one of .png, .pdf, .svg, .jpg")
    write_whole(target, lambda new: figure.savefig(new, dpi=120))
