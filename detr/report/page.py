"""The report as one HTML page, which needs nothing beside it: styles, figures and pictures are in it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detr.errors import InputError
from detr.report.figures import precision_recall
from detr.report.kinds import KINDS
from detr.report.results import ERRORS, SIZES, ClassReport, Report, Run
from detr.report.summary import Summary
from detr.report.training import training_figures
from detr.report.wording import threshold
from detr.report.worst import Pair

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ModuleNotFoundError:
    raise InputError("reports need Jinja2, which is not installed: pip install -e '.[report]'") from None

MOST_CONFUSED = 16  # classes in the confusion matrix, where there are more than can be read
MOST_PAIRS = 5  # of classes that are taken for each other, in words
NOTHING = "\N{EN DASH}"  # where there is nothing to measure


@dataclass(frozen=True)
class Confusion:
    """A part of the confusion matrix, to be shown.

    names: of rows and columns; the last row is what was predicted on nothing, the last column what was missed
    counts: (n, n); shares: of their rows, in [0, 1], NaN in a row without counts
    hidden: classes that are left out
    pairs: class, what it was taken for, how often, and the objects of the class; the most frequent first
    """

    names: tuple[str, ...]
    counts: np.ndarray
    shares: np.ndarray
    hidden: int
    pairs: tuple[tuple[str, str, int, int], ...]

    @property
    def long(self) -> bool:
        """Whether the names over the columns need to be turned."""
        return len(self.names) > 8 or max(map(len, self.names)) > 8


def render(run: Run, report: Report, summary: Summary, pairs: Sequence[Pair]) -> str:
    """The page's HTML.

    pairs: pictures of the first of ``report.worst``

    What users may name as they like, such as classes and folders, is escaped. Raises InputError without Jinja2.
    """
    loader = PackageLoader("detr.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "count": count, "threshold": threshold}
    style, script = (loader.get_source(environment, name)[0] for name in ("page.css", "page.js"))
    classes = report.classes
    return environment.get_template("page.html").render(
        run=run,
        report=report,
        summary=summary,
        pairs=pairs,
        style=style,
        script=script,
        model=run.config.get("MODEL"),  # none in a LazyConfig
        tiles=_tiles(report),
        kinds=KINDS,
        errors=ERRORS,
        sizes=SIZES,
        largest_gain=max((x.ap50_gain for x in report.errors), default=0) or 1,
        confusion=confusion_part(report.confusion, [x.name for x in classes]),
        curves=_curves(classes),
        figures=training_figures(run.metrics, run.dataset),
    )


def percent(share: float | None, digits: int = 1) -> str:
    """0.6312 -> "63.1"; a dash where there is nothing to measure."""
    return NOTHING if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def count(number: int) -> str:
    """12345 -> "12,345" """
    return f"{number:,}"


def headline(report: Report) -> str:
    """ "box AP 70.5, AP50 96.0" """
    mask = "" if report.mask is None else f", mask AP {percent(report.mask.ap)}"
    return f"box AP {percent(report.box.ap)}, AP50 {percent(report.box.ap50)}{mask}"


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The numbers above all others: what they are, the number, a remark."""
    box, counts = report.box, report.counts
    tiles = [("box AP", percent(box.ap), "IoU 0.5 to 0.95"), ("AP50", percent(box.ap50), "IoU 0.5")]
    tiles += [("AP75", percent(box.ap75), "IoU 0.75")]
    remarks = ("below 32 x 32 pixels", "to 96 x 96 pixels", "larger ones")
    tiles += [(f"AP {size}", percent(getattr(box, size)), text) for size, text in zip(SIZES, remarks, strict=True)]
    if report.mask is not None:
        tiles += [("mask AP", percent(report.mask.ap), f"AP50 {percent(report.mask.ap50)}")]
    at = f"scores from {threshold(report.threshold)}"
    tiles += [("precision", percent(counts.precision), at), ("recall", percent(counts.recall), at)]
    return [*tiles, ("F1", percent(counts.f1), at)]


def confusion_part(matrix: np.ndarray, names: Sequence[str], most: int = MOST_CONFUSED) -> Confusion:
    """What to show of a confusion matrix: all of it, or the ``most`` classes that are taken for each other most often.

    matrix: (K + 1, K + 1), as of a ``Report``
    """
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-(between.sum(0) + between.sum(1)), kind="stable")[:most]
    shown = np.append(np.sort(order), len(names))
    totals = matrix[shown].sum(1, keepdims=True)
    shares = np.divide(matrix[np.ix_(shown, shown)], totals, out=np.full([len(shown)] * 2, np.nan), where=totals > 0)
    rows, columns = np.unravel_index(np.argsort(-between, axis=None, kind="stable")[:MOST_PAIRS], between.shape)
    return Confusion(
        names=tuple(names[i] for i in shown[:-1]),
        counts=matrix[np.ix_(shown, shown)],
        shares=shares,
        hidden=len(names) + 1 - len(shown),
        pairs=tuple(
            (names[i], names[j], int(between[i, j]), int(matrix[i].sum()))
            for i, j in zip(rows, columns, strict=True)
            if between[i, j]
        ),
    )


def _curves(classes: Sequence[ClassReport]) -> str:
    """The precision-recall curves as SVG."""
    curves = [None if np.isnan(x.curve.precision).all() else x.curve.precision for x in classes]
    marks = [None if x.at_best is None else (x.at_best.recall or 0.0, x.at_best.precision or 0.0) for x in classes]
    known = [x for x in curves if x is not None]
    mean = np.mean(known, axis=0) if len(known) > 1 else None
    return precision_recall(curves, mean, marks, "Precision against recall, a curve for each class")
