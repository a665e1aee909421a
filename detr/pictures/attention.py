"""Where a model looks, as a sheet: the image with its objects, and the attention of queries and points over it."""

import math
import string
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from detr.modeling.attention_maps import Attention
from detr.pictures.drawing import class_color, draw_objects, label_text

MAX_QUERIES = 12  # on a sheet, those of the best objects

COLORS = "inferno"  # perceptually even: equal steps of the weight look equal
DARK = 0.5  # of the image's brightness, where nobody looks
POINT = "#00e5ff"

# Sizes in inches.
PANEL = 2.0  # the square root of a panel's area
MAX_ASPECT = 5.0  # of a panel, width to height or the other way round
MIN_WIDTH = 1.45  # of a column, in which its titles are
TITLE, GAP, MARGIN, SIDE, LEGEND, LEGEND_WIDTH = 0.42, 0.12, 0.1, 0.3, 0.5, 7.4
DPI = 100
SHAPE = 1.5  # width to height of all panels together, roughly


def attention_sheet(
    image: np.ndarray, attention: Attention, class_names: Sequence[str] | None = None, max_queries: int = MAX_QUERIES
) -> np.ndarray:
    """The image with its best objects and the points; beside it, by number and letter, where each of them looks.

    image: (H, W, 3) uint8, RGB
    attention: of this image; the last of its layers is drawn, as the mean of the heads
    class_names: of the K classes
    max_queries: how many objects are shown at most, the best ones

    Returns the sheet (H', W', 3) uint8, RGB.
    """
    objects = attention.objects[:max_queries]
    points = attention.points.tolist() if len(attention.encoder) else []
    boxes, classes = objects.pred_boxes.tensor.numpy(), objects.pred_classes.tolist()
    labels = [
        f"{number}  {label_text(index, class_names, score)}"
        for number, (index, score) in enumerate(zip(classes, objects.scores.tolist(), strict=True), start=1)
    ]
    layout = _Layout(image.shape[1] / image.shape[0], (len(objects), len(points)))
    figure = Figure(figsize=layout.figure_size, dpi=DPI)
    canvas = FigureCanvasAgg(figure)

    large, scale = _resize(image, layout.overview_size)
    picture = draw_objects(large, boxes * np.tile(scale, 2), classes, labels)
    overview = _panel(figure, layout.overview(), picture, image, _summary(len(objects), len(attention.objects)))

    small, scale = _resize(image, layout.panel_size)
    covered = attention.extent[0] * scale[0], attention.extent[1] * scale[1]
    for index, query in enumerate(objects.pred_queries.tolist()):
        weights = attention.decoder[-1, :, query].mean(0).numpy()
        title = f"{labels[index]}\nquery {query}, peak {weights.max():.1%}"
        axes = _panel(figure, layout.panel(0, index), heat(small, weights, covered), image, title)
        x0, y0, x1, y1 = boxes[index]
        color = class_color(classes[index])
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1.5))
    for index, (x, y) in enumerate(points):
        letter = string.ascii_uppercase[index % 26]
        weights = attention.encoder[-1, :, index].mean(0).numpy()
        title = f"{letter}  at {x:.0f}, {y:.0f}\npeak {weights.max():.1%}"
        axes = _panel(figure, layout.panel(1, index), heat(small, weights, covered), image, title)
        for target, size in ((axes, 6), (overview, 8)):
            target.plot(x, y, "o", markersize=size, color=POINT, markeredgecolor="black", clip_on=False)
        background = {"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5}
        overview.annotate(
            letter, (x, y), (6, 4), textcoords="offset points", color=POINT, fontweight="bold", bbox=background
        )
    _name_groups(figure, layout)
    _add_legend(figure, layout, heads=attention.decoder.shape[1])
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def heat(image: np.ndarray, weights: np.ndarray, extent: tuple[float, float]) -> np.ndarray:
    """Weights as heat over the darkened gray image, from 0 to the largest of them: (H, W, 3) uint8, RGB.

    image: (H, W, 3) uint8, RGB; weights: (h, w), not negative
    extent: (width, height) that the weights cover from the upper left corner, in pixels of the image
    """
    height, width = image.shape[:2]
    source = (0, 0, width / extent[0] * weights.shape[1], height / extent[1] * weights.shape[0])
    map_image = Image.fromarray(weights.astype(np.float32))
    # Between two large weights, the curve through them is higher than both.
    smooth = np.asarray(map_image.resize((width, height), Image.Resampling.BICUBIC, box=source))[..., None].clip(0)
    values = smooth / max(smooth.max(), 1e-12)
    gray = np.asarray(Image.fromarray(image).convert("L"))[..., None] * DARK
    colors = colormaps[COLORS](values[..., 0])[..., :3] * 255
    return np.asarray(gray * (1 - values) + colors * values**0.5).clip(0, 255).astype(np.uint8)


class _Layout:
    """Where the panels are: the overview on the left, two panels high; on the right groups, each on rows of its own."""

    def __init__(self, aspect: float, groups: Sequence[int]) -> None:
        """aspect: of the image, width to height; groups: how many panels each has"""
        aspect = min(max(aspect, 1 / MAX_ASPECT), MAX_ASPECT)
        self.groups = groups
        width, height = PANEL * aspect**0.5, PANEL / aspect**0.5
        self.panel_size = width, height
        self.cell = max(width, MIN_WIDTH) + GAP, height + TITLE
        double = min(2 + GAP / width, 2 + TITLE / height)
        self.overview_size = double * width, double * height
        columns = round((sum(groups) * SHAPE * self.cell[1] / self.cell[0]) ** 0.5)
        self.columns = min(max(groups), max(columns, 2))
        self.rows = [math.ceil(count / self.columns) if count else 0 for count in groups]
        self.left = MARGIN + max(self.overview_size[0], MIN_WIDTH) + SIDE  # of the first column
        self.figure_size = (
            max(self.left + self.columns * self.cell[0], LEGEND_WIDTH),
            max(sum(self.rows), 2) * self.cell[1] + LEGEND,
        )

    def overview(self) -> tuple[float, float, float, float]:
        return self.place(MARGIN, TITLE, self.overview_size)

    def panel(self, group: int, index: int) -> tuple[float, float, float, float]:
        row = sum(self.rows[:group]) + index // self.columns
        left = self.left + index % self.columns * self.cell[0]
        return self.place(left, row * self.cell[1] + TITLE, self.panel_size)

    def place(self, left: float, top: float, size: tuple[float, float]) -> tuple[float, float, float, float]:
        """From inches to matplotlib's left, bottom, width and height in shares of the figure."""
        width, height = self.figure_size
        return left / width, 1 - (top + size[1]) / height, size[0] / width, size[1] / height


def _panel(
    figure: Figure, place: tuple[float, float, float, float], picture: np.ndarray, image: np.ndarray, title: str
) -> Axes:
    """A picture of the image, in whose pixels all else is drawn on it."""
    height, width = image.shape[:2]
    axes = figure.add_axes(place)
    axes.imshow(picture, extent=(0, width, height, 0), aspect="auto", interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    text = axes.set_title(title, loc="left", fontsize=9, pad=3, parse_math=False)
    _shorten(text, max(axes.get_window_extent().width, MIN_WIDTH * DPI))
    return axes


def _shorten(text: Text, width: float) -> None:
    """Cuts the first line, which has a name of the user's, until it fits; width: in pixels."""
    kept, *others = text.get_text().split("\n")
    while len(kept) > 1 and (share := width / text.get_window_extent().width) < 1:
        kept = kept[: max(int(len(kept) * share), 1)]
        text.set_text("\n".join([kept.rstrip() + "…", *others]))


def _resize(image: np.ndarray, inches: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """The image at a panel's size, and the (x, y) scale that makes it so."""
    size = [max(round(side * DPI), 1) for side in inches]
    resized = Image.fromarray(image).resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return np.asarray(resized), np.array(size) / image.shape[1::-1]


def _summary(shown: int, count: int) -> str:
    if count > shown:
        return f"the {shown} best of {count} objects"
    return f"{count} object{'s' * (count != 1)}" if count else "no object above the threshold"


def _name_groups(figure: Figure, layout: _Layout) -> None:
    for group, name in enumerate(("decoder: queries", "encoder: points")):
        if layout.groups[group]:
            _, bottom, _, share = layout.panel(group, 0)
            x = (layout.left - 0.07) / layout.figure_size[0]
            figure.text(x, bottom + share, name, rotation=90, ha="right", va="top", fontsize=9, color="#555555")


def _add_legend(figure: Figure, layout: _Layout, heads: int) -> None:
    axes = figure.add_axes(layout.place(MARGIN, layout.figure_size[1] - LEGEND + 0.12, (1.2, 0.12)))
    bar = figure.colorbar(ScalarMappable(cmap=COLORS), cax=axes, orientation="horizontal", ticks=[])
    bar.outline.set_visible(False)
    text = f"attention, mean of {heads} heads: from 0 to the largest weight of the panel, its peak (of 100% in all)"
    axes.text(1.08, 0.5, text, transform=axes.transAxes, va="center", fontsize=9, color="#555555")
