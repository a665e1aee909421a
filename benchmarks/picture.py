"""growth.png: time against size, a panel for each thing that grows."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = 3
COLORS = ("#0b6bcb", "#d9480f")  # ours, the peer
MARKERS = ("o", "s")


def draw(curves: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """curves: as in results.json; both axes are logarithmic, so that a slope of 1 is linear."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    rows = math.ceil(len(curves) / COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(4.2 * COLUMNS, 3.4 * rows), squeeze=False, dpi=130)
    panels = list(grid.flat)
    for panel, curve in zip(panels, curves.values(), strict=False):
        sizes: set[int] = set()
        for (who, line), color, marker in zip(curve["lines"].items(), COLORS, MARKERS, strict=False):
            label = f"{who}, slope {line['slope']:.2f}"
            panel.plot(line["sizes"], line["seconds"], color=color, marker=marker, markersize=5, label=label)
            sizes |= set(line["sizes"])
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(sorted(sizes), [_short(size) for size in sorted(sizes)], fontsize=8)
        panel.xaxis.set_minor_locator(NullLocator())
        low, high = panel.get_ylim()
        panel.set_ylim(low / 1.3, high * 2.2)  # room for the legend
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _time(value)))
        if high / low > 20:
            panel.yaxis.set_minor_formatter(NullFormatter())
        else:
            panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: _time(value) if _is_round(value) else ""))
        panel.tick_params(axis="y", which="both", labelsize=8)
        panel.set_title(curve["title"], fontsize=10)
        panel.grid(True, which="major", color="#dddddd", linewidth=0.6)
        panel.legend(fontsize=8, loc="upper left", frameon=False)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    for panel in panels[len(curves) :]:
        panel.set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _short(size: int) -> str:
    return f"{size / 1000:.0f}k" if size >= 10_000 else f"{size:,}"


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"


def _is_round(value: float) -> bool:
    """2 or 5 times a power of ten."""
    return round(value / 10 ** math.floor(math.log10(value) + 1e-9)) in (2, 5)
