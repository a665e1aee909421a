"""The page's figures as inline SVG, which takes the page's colors and font.

matplotlib knows no CSS: it draws with stand-in colors, which become CSS variables in the text of the SVG. So one figure
serves light and dark pages, and its letters are the page's.
"""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.6, 3.1  # inches: one figure fills a phone's width with letters that can be read
FONT_POINTS = 9
FEW = 30  # points of a curve, which are marked

# Stand-in color -> CSS. No figure may have these colors otherwise.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
SERIES = ("#010211", "#010212", "#010213", "#010214")
CSS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
CSS |= {color: f"var(--series-{number})" for number, color in enumerate(SERIES, start=1)}

# What an SVG has that a page must not have: a style for all of its elements, sizes, names that several figures share.
CLEANING = (
    (r"^.*?(?=<svg )", ""),
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),
    (r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1"),
    (r' id="[\w.]+_\d+"', ""),
    (r"font-family: [^;]*; ", ""),
)

STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text
    "font.family": "sans-serif",
    "font.size": FONT_POINTS,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 6),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_joinstyle": "round",
    # A long curve keeps the points that can be seen.
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}

Points = tuple[np.ndarray, np.ndarray]  # x and y, both (n,)


def line_chart(lines: Mapping[str, Points], *, title: str, x_label: str, percent: bool = False) -> str:
    """Curves over one axis, as SVG.

    lines: what the legend calls a curve -> its points, at most four curves; title: read to those who cannot see it
    percent: the y axis goes from 0 to 100; else it begins at 0
    """
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure()
        for (label, (x, y)), color in zip(lines.items(), SERIES, strict=False):
            # A line hides its points where there are many.
            axis.plot(x, y, "o-" if len(x) < FEW else "-", color=color, markersize=3.5, label=label)
        axis.set(xlabel=x_label)
        axis.set_ylim(0, 100 if percent else None)
        axis.margins(x=0.02)
        if len(lines) > 1:
            axis.legend()
        return _svg(figure, title)


def precision_recall(
    curves: Sequence[np.ndarray | None],
    mean: np.ndarray | None,
    marks: Sequence[tuple[float, float] | None],
    title: str,
) -> str:
    """Precision against recall, a curve a class and their mean, as SVG.

    curves: of each class the precision at recalls 0, 0.01 ... 1; None without objects
    marks: of each class recall and precision at its threshold
    A class's curve and mark are groups with its number in ``data-class``, of which the page shows one.
    """
    recalls = np.linspace(0, 1, 101)
    with matplotlib.rc_context(STYLE):
        figure, axis = _figure()
        for index, (curve, mark) in enumerate(zip(curves, marks, strict=True)):
            if curve is None:
                continue
            (line,) = axis.plot(recalls, curve, color=SERIES[0], linewidth=1.2)
            line.set_gid(f"curve-{index}")
            if mark is not None:
                (point,) = axis.plot(*mark, "o", color=SERIES[0], markersize=5)
                point.set_gid(f"mark-{index}")
        if mean is not None:
            axis.plot(recalls, mean, color=INK, linewidth=2, label="mean of all classes")
            axis.legend(loc="lower left")
        axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
        text = _svg(figure, title)
    return re.sub(r'<g id="(curve|mark)-(\d+)">', r'<g class="\1" data-class="\2">', text)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots()


def _svg(figure: Figure, title: str) -> str:
    """The element <svg>, as wide as the page lets it be, with the page's colors and font.

    title: read aloud to those who do not see the figure
    """
    file = io.StringIO()
    # Names of clip paths come from the salt: two figures must not share them, and a page made twice is the same.
    with matplotlib.rc_context({"svg.hashsalt": title}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    for color, css in CSS.items():
        text = text.replace(color, css)
    for pattern, replacement in CLEANING:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    # A hundredth of a point is finer than a screen.
    text = re.sub(r'="[^"]*\d\.\d[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(title)}" ', 1)
