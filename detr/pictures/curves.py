"""The course of a training, as a picture."""

import json

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS = {"bbox/AP50": "box AP50", "bbox/AP": "box AP", "segm/AP": "mask AP", "panoptic_seg/PQ": "PQ"}
LOSSES = {"total_loss": "training", "val_loss": "validation"}


def plot_training(metrics_file: str, path: str) -> None:
    """The losses, and AP and PQ, against the iterations.

    metrics_file: Detectron2's ``metrics.json``, one JSON object a line
    """
    with open(metrics_file) as file:
        rows = [json.loads(line) for line in file]
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axis, result_axis = figure.subplots(1, 2)
    for axis, curves in ((loss_axis, LOSSES), (result_axis, RESULTS)):
        for key, label in curves.items():
            points = [(row["iteration"], row[key]) for row in rows if key in row]
            if points:
                # A line hides its points where there are many; of evaluations there are few.
                style = "-" if key == "total_loss" else "o-"
                axis.plot(*zip(*points, strict=True), style, markersize=4, label=label)
        if axis.lines:
            axis.legend()
        axis.grid(alpha=0.3)
    loss_axis.set(xlabel="iteration", ylabel="loss, all decoder layers", ylim=(0, None))
    result_axis.set(xlabel="iteration", ylabel="on the validation set, in percent", ylim=(0, 100))
    figure.savefig(path, dpi=120)
