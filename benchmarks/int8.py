"""Graphs in int8: how fast they are, and what they cost in AP and PQ."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from detectron2.data import DatasetCatalog
from PIL import ImageFilter

import detr.export
from benchmarks.agreement import REFERENCE, check_detections, differences, found
from benchmarks.contestants import original_predictor, our_config, our_predictor, photograph
from benchmarks.demo import config_file, trained_weights
from benchmarks.earlier import ROOT
from benchmarks.inference import ROWS, image_size
from benchmarks.timing import Result, Sample, Settings, Unavailable, race, require
from detr.engine.defaults import load_config
from detr.export import Reduction
from detr.export.checking import AGREEMENT
from detr.export.model import Description
from detr.export.reduction import FLOAT32

CALIBRATED = 20  # drawn photographs, at half the sides of the one that is timed: the ranges are much the same
# With random weights, int8 is nearly as far off as one query is from the next, 0.22 and 0.16.
BOUNDS = {"mean of scores": 0.22, "mean of boxes": 0.16, "other classes": 0.8}
AGREEMENT_OF_RANDOM_WEIGHTS = 0.3  # the export's own bound is for trained ones
IMAGES = 300  # of shapes_train
STEPS = 900  # of a training that is long enough to have an AP and a PQ to lose


def openvino_to_original(settings: Settings) -> Result:
    return _speed("openvino", settings, beside_original=True)


def openvino(settings: Settings) -> Result:
    return _speed("openvino", settings)


def onnx(settings: Settings) -> Result:
    return _speed("onnx", settings)


def _speed(format: str, settings: Settings, beside_original: bool = False) -> Result:
    size = image_size(settings)
    with tempfile.TemporaryDirectory() as folder:
        exact, int8 = os.path.join(folder, "float32"), os.path.join(folder, "int8")
        cfg = our_config("detr_R_50", size[0])
        _export(cfg, exact, format)
        small = our_config("detr_R_50", size[0] // 2)
        reduction = Reduction(int8=True, calibration=_photographs(folder, size, settings))
        with mock.patch.dict(AGREEMENT, int8=AGREEMENT_OF_RANDOM_WEIGHTS):
            _export(small, int8, format, reduction)
        others = {"original": original_predictor("detr_R_50", size[0])}
        ours = {
            name: our_predictor(cfg.clone(), model=detr.export.load(path))
            for name, path in (("ours", int8), (f"ours, {format} float32", exact))
        }
        contestants = {"ours": ours["ours"], **others} if beside_original else {**ours, **others}
        photo = photograph(*size)
        samples, agreement = race(
            {name: functools.partial(detect, photo) for name, detect in contestants.items()},
            settings.repeats,
            lambda outputs: _check(outputs, size),
        )
        return Result(samples, agreement=agreement, note="random weights magnify what int8 rounds; AP has its own rows")


def _check(outputs: dict[str, Any], size: tuple[int, int]) -> str:
    """Float32 as exactly as everywhere, int8 by means. Raises Disagreement."""
    reference = found(outputs[REFERENCE], ROWS)
    text = require("ours", differences(found(outputs["ours"], ROWS), reference, size, rounded=True), BOUNDS)
    exact = {name: output for name, output in outputs.items() if name != "ours"}
    return "; ".join(part for part in (text, check_detections(exact, size, ROWS)) if part)


def _export(cfg: Any, folder: str, format: str, reduction: Reduction = FLOAT32) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        detr.export.export(cfg, folder, format, reduction=reduction)


def _photographs(folder: str, size: tuple[int, int], settings: Settings) -> str:
    """The name of a data set of drawn photographs, each with another contrast and blur."""
    name, files = "benchmark_photographs", os.path.join(folder, "photographs")
    os.mkdir(files)
    small = photograph(*(side // 2 for side in size))
    for index in range(3 if settings.smoke else CALIBRATED):
        turned = small.rotate(18 * index, fillcolor=(120, 110, 100))
        turned.filter(ImageFilter.GaussianBlur(index % 4)).save(os.path.join(files, f"{index}.png"))
    if name not in DatasetCatalog:
        DatasetCatalog.register(
            name, lambda: [{"file_name": os.path.join(files, x)} for x in sorted(os.listdir(files))]
        )
    return name


def box_ap(settings: Settings) -> Result:
    return _cost("shapes_val", "bbox/AP", settings, panoptic=False)


def pq(settings: Settings) -> Result:
    return _cost("shapes_val_panoptic", "panoptic_seg/PQ", settings, panoptic=True)


def _cost(dataset: str, metric: str, settings: Settings, *, panoptic: bool) -> Result:
    """AP or PQ in int8 by OpenVINO, in float32, and in int8 by ONNX Runtime: of the demo's model, where there is one,
    else of a shorter training.
    """
    images = 4 if settings.smoke else IMAGES
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        config = config_file(panoptic)
        weights = trained_weights(panoptic)
        if weights is None:
            note = f"trained for {STEPS} iterations"
            weights = _train(config, folder, 2 if settings.smoke else STEPS)
        else:
            note = f"the weights of `make {'demo-panoptic' if panoptic else 'demo'}`"
        cfg = load_config(config, ["MODEL.WEIGHTS", str(weights)])
        measured = {}
        for format in ("openvino", "onnx"):
            output = os.path.join(folder, format)
            _export(cfg, output, format, Reduction(True, "shapes_train", images, evaluate=dataset))
            measured[format] = Description.read(output).measured or {}
    samples = {
        "ours": measured["openvino"]["int8"],
        "ours, float32": measured["openvino"]["float32"],
        "ours, ONNX Runtime int8": measured["onnx"]["int8"],
    }
    scores = measured["openvino"]
    others = ", ".join(
        f"{name} {value:.2f} in float32, {scores['int8'][name]:.2f} in int8"
        for name, value in scores["float32"].items()
        if name != metric
    )
    points = {who: Sample((values[metric],)) for who, values in samples.items()}
    return Result(points, unit="points", note=f"{dataset}, {note}{'; ' * bool(others)}{others}")


def _train(config: str, folder: str, steps: int) -> Path:
    """The weights of a training in a process of its own."""
    output = os.path.join(folder, "trained")
    opts = ["OUTPUT_DIR", output, "SOLVER.MAX_ITER", str(steps), "TEST.EVAL_EPOCHS", "0"]
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", config, *opts]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=here, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"train_net.py failed: {done.stderr.strip().splitlines()[-1:]}")
    return Path(output, "model_final.pth")
