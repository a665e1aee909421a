"""Where queries put their boxes over many images (paper, fig. 7)."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detr.inference.query_use import QueryUse

COLUMNS = 5
PANEL, TITLE, MARGIN, LEGEND = 1.7, 0.28, 0.15, 0.55  # inches
DPI = 110
LARGE = 0.6  # of the image's side: from there on a box has its full color
INK, MIN_POINT, MAX_POINT = 3000, 1.5, 16.0  # square points (1/72 inch): of all centers in a panel, and of one
EXAMPLES = (  # of the legend: width and height
    (0.05, 0.05, "small"),
    (0.6, 0.15, "large, wide"),
    (0.15, 0.6, "large, tall"),
    (0.6, 0.6, "large"),
)


def box_colors(sizes: np.ndarray) -> np.ndarray:
    """Green for small boxes, red for large horizontal ones, blue for large vertical ones, and purple for both.

    sizes: (B, 2), width and height in [0, 1]. Returns (B, 3), RGB in [0, 1].
    """
    red, blue = (sizes / LARGE).clip(0, 1).T
    return np.stack([red, 0.8 * (1 - np.maximum(red, blue)), blue], axis=1)


def query_panels(use: QueryUse, queries: Sequence[int]) -> np.ndarray:
    """A panel for each query, with the centers of its boxes in all images as points, in shares of the image.

    Returns the picture (H, W, 3) uint8, RGB.
    """
    columns = min(COLUMNS, len(queries))
    rows = math.ceil(len(queries) / columns)
    width = max(columns * (PANEL + MARGIN) + MARGIN, 4.2)
    height = rows * (PANEL + TITLE + MARGIN) + LEGEND
    figure = Figure(figsize=(width, height), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    area = min(max(INK / len(use.boxes), MIN_POINT), MAX_POINT)
    shares = use.share()
    for index, query in enumerate(queries):
        row, column = divmod(index, columns)
        left, top = MARGIN + column * (PANEL + MARGIN), TITLE + row * (PANEL + TITLE + MARGIN)
        axes = figure.add_axes((left / width, 1 - (top + PANEL) / height, PANEL / width, PANEL / height))
        boxes = use.boxes[:, query].numpy()
        boxes = boxes[np.argsort(-boxes[:, 2:].prod(1))]  # small ones over large ones
        axes.scatter(boxes[:, 0], boxes[:, 1], s=area, c=box_colors(boxes[:, 2:]), linewidths=0, alpha=0.7)
        axes.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[])  # y points down, as in the image
        axes.spines[:].set_color("#999999")
        axes.set_title(f"query {query}: {shares[query]:.0%}", fontsize=8.5, pad=3)
    legend = figure.add_axes((0, 0, 1, LEGEND / height))
    legend.set(xlim=(0, width), ylim=(0, LEGEND))
    legend.set_axis_off()
    step = min((width - 2 * MARGIN) / len(EXAMPLES), 1.3)
    for index, (*size, name) in enumerate(EXAMPLES):
        x = MARGIN + 0.08 + index * step
        legend.scatter([x], [0.36], s=36, c=box_colors(np.array([size])), linewidths=0)
        legend.text(x + 0.1, 0.36, name, va="center", fontsize=8.5)
    note = f"centers of the boxes in {len(use.boxes)} images; in percent: where the query is kept"
    legend.text(MARGIN, 0.12, note, va="center", fontsize=8.5, color="#555555")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
