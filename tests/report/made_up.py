"""A report of numbers that nobody measured, for tests of the page."""

from pathlib import Path

import numpy as np
from PIL import Image

from detr.evaluation.operating_point import ClassCounts
from detr.report import results
from detr.report.results import (
    AveragePrecision,
    ClassReport,
    Curve,
    ErrorReport,
    Finding,
    ImageReport,
    MissedObjects,
    Report,
    Run,
)
from detr.report.summary import Change, Summary
from tests.report.cases import as_metrics

OBJECTS = 100  # of each class
NAN = float("nan")


def ap(value: float) -> AveragePrecision:
    """All numbers from one, in [0, 1]; no large objects."""
    return AveragePrecision(value, min(value + 0.2, 1), value, value / 2, value, NAN)


def class_report(name: str, value: float, wrong: int = 10) -> ClassReport:
    """A class of 100 objects, with ``value`` as its AP and its recall; NaN for a class without objects."""
    if np.isnan(value):
        nothing = np.full(101, np.nan)
        counts = ClassCounts(name, 0, 0, 0)
        errors = dict.fromkeys(results.ERRORS, 0)
        return ClassReport(name, ap(NAN), None, Curve(nothing, nothing), 0, 0, (0, 0, 0), None, None, counts, errors)
    recalls, found = np.linspace(0, 1, 101), round(OBJECTS * value)
    precision = np.where(recalls <= value, 1 - 0.4 * recalls, 0)
    curve = Curve(precision, np.where(recalls <= value, 1 - recalls, np.nan))
    counts = ClassCounts(name, OBJECTS, found + wrong, found)
    errors = {**dict.fromkeys(results.ERRORS, 0), results.BACKGROUND: wrong, results.MISSED: OBJECTS - found}
    return ClassReport(name, ap(value), None, curve, OBJECTS, 60, (50, 50, 0), 0.4, counts, counts, errors)


def made_up_report(values: dict[str, float], worst: tuple[ImageReport, ...] = ()) -> Report:
    """values: class -> AP; each class is taken for the next one by a tenth of what is found of it."""
    classes = tuple(class_report(name, value) for name, value in values.items())
    confusion = np.zeros((len(classes) + 1, len(classes) + 1), dtype=int)
    for i, row in enumerate(classes):
        taken = row.counts.found // 10 * (len(classes) > 1)
        confusion[i, i] = row.counts.found - taken
        confusion[i, (i + 1) % len(classes)] += taken
        confusion[i, -1] = row.objects - row.counts.found
        confusion[-1, i] = row.errors[results.BACKGROUND]
    totals = [sum(getattr(x.counts, key) for x in classes) for key in ("objects", "detections", "found")]
    mean = float(np.nanmean([*values.values()])) if not all(map(np.isnan, values.values())) else NAN
    counts = {kind: sum(x.errors[kind] for x in classes) for kind in results.ERRORS}
    return Report(
        dataset="made_up_val",
        images=250,
        objects=totals[0],
        most_objects=9,
        detections=100 * 250,
        box=ap(mean),
        mask=None,
        threshold=0.45,
        classes=classes,
        counts=ClassCounts("all", *totals),
        confusion=confusion,
        errors=tuple(ErrorReport(kind, counts[kind], 5 * counts[kind], counts[kind] / 2000) for kind in results.ERRORS),
        missed=MissedObjects(counts[results.MISSED], 3, 2, 1, 20, 10),
        worst=worst,
        findings=(Finding("Missed objects cost the most.", "Train for longer."),),
        warnings=(),
    )


def made_up_run(folder: str = "output/made_up") -> Run:
    rows = [
        {"iteration": 20 * i, "total_loss": 30 / (i + 1) + 2 + 0.3 * (i % 3), "lr": 1e-4 if i < 60 else 1e-5}
        for i in range(90)
    ]
    for i in range(9, 90, 10):
        rows[i] |= {"val_loss": 30 / (i + 1) + 2.6, "bbox/AP": 60 - 300 / (i + 1), "bbox/AP50": 90 - 300 / (i + 1)}
    config = {"MODEL": {"META_ARCHITECTURE": "Detr", "BACKBONE": {"NAME": "resnet"}, "WEIGHTS": f"{folder}/model.pth"}}
    return Run(folder, config, f"{folder}/config.yaml", as_metrics(rows), "made_up_val", {}, (), (), (), {})


def made_up_summary() -> Summary:
    changes = (Change("MODEL.DETR.NHEADS", "4", "8"), Change("DATASETS.TEST", "['made_up_val']", "[]"))
    return Summary(None, (480, 640), "no model was made", changes)


def worst_image(folder: Path) -> ImageReport:
    """An image of 160 x 120 gray pixels with one object of class 0 that is missed, and a detection on nothing."""
    path = folder / "gray.png"
    Image.new("RGB", (160, 120), (128, 128, 128)).save(path)
    return ImageReport(
        image_id=1,
        file=str(path),
        cost=2,
        truth_boxes=np.array([[20.0, 30.0, 60.0, 90.0]]),
        truth_classes=np.array([0]),
        truth_crowd=np.array([False]),
        truth_kinds=(results.MISSED,),
        boxes=np.array([[90.0, 30.0, 140.0, 90.0]]),
        classes=np.array([0]),
        scores=np.array([0.75]),
        kinds=(results.BACKGROUND,),
    )
