"""Boxes of one image: DefaultPredictor as it is, beside the authors' code, transformers and OpenVINO."""

import contextlib
import functools
import io
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch

import detr.export
from benchmarks.agreement import check_detections
from benchmarks.contestants import (
    Detector,
    checkpoint,
    openvino_predictor,
    original_predictor,
    our_config,
    our_predictor,
    photograph,
    transformers_predictor,
)
from benchmarks.demo import config_file, trained_weights
from benchmarks.timing import Result, Settings, Unavailable, race
from detr.checkpoint import DetrCheckpointer
from detr.convert.reference import CHECKOUT
from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer

ROWS = 92  # of the original's class head


def image_size(settings: Settings) -> tuple[int, int]:
    """(height, width): that of a COCO photograph after its resize."""
    return (320, 416) if settings.smoke else (800, 1066)


def inference(settings: Settings) -> Result:
    size = image_size(settings)
    contestants = {
        "ours": our_predictor(our_config("detr_R_50", size[0])),
        "original": original_predictor("detr_R_50", size[0]),
        "transformers": transformers_predictor("detr_R_50", size[0]),
        "OpenVINO of the original": openvino_predictor("detr_R_50", size, settings.threads),
    }
    return _race(contestants, settings)


def bfloat16(settings: Settings) -> Result:
    size = image_size(settings)
    contestants = {
        "ours": our_predictor(our_config("detr_R_50", size[0], "MODEL.DETR.INFERENCE_DTYPE", "bfloat16")),
        "original": original_predictor("detr_R_50", size[0]),
        "transformers, bfloat16": transformers_predictor("detr_R_50", size[0], torch.bfloat16),
    }
    return _race(contestants, settings, rounded=True, note=_ap_of_shapes())


def dc5(settings: Settings) -> Result:
    size, name = image_size(settings), "detr_R_50_DC5"
    contestants = {
        "ours": our_predictor(our_config(name, size[0])),
        "original": original_predictor(name, size[0]),
        "transformers": transformers_predictor(name, size[0]),
    }
    return _race(contestants, settings)


def openvino(settings: Settings) -> Result:
    size = image_size(settings)
    with tempfile.TemporaryDirectory() as folder:
        exported = _exported(size, folder)
        contestants = {
            "ours": our_predictor(our_config("detr_R_50", size[0]), model=exported),
            "original": original_predictor("detr_R_50", size[0]),
            "OpenVINO of the original": openvino_predictor("detr_R_50", size, settings.threads),
        }
        return _race(contestants, settings)


def _exported(size: tuple[int, int], folder: str) -> Any:
    """Our model in OpenVINO, as tools/export_model.py writes it and detr.export loads it."""
    tool = CHECKOUT.parent / "tools" / "export_model.py"
    file = os.path.join(folder, "config.yaml")
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(our_config("detr_R_50", size[0], "MODEL.WEIGHTS", checkpoint("detr_R_50")).dump())
    output = os.path.join(folder, "openvino")
    options = ["--config-file", file, "--format", "openvino", "--output", output]
    command, here = [sys.executable, str(tool), *options], {**os.environ, "PYTHONPATH": str(CHECKOUT.parent)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"tools/export_model.py failed: {done.stderr.strip().splitlines()[-1:]}")
    return detr.export.load(output)


def _race(contestants: dict[str, Detector], settings: Settings, rounded: bool = False, note: str = "") -> Result:
    size = image_size(settings)
    photo = photograph(*size)
    samples, agreement = race(
        {name: functools.partial(detect, photo) for name, detect in contestants.items()},
        settings.repeats,
        lambda outputs: check_detections(outputs, size, ROWS, rounded),
    )
    return Result(samples, agreement=agreement, note=note)


def _ap_of_shapes() -> str:
    """Box AP of the demo's model in both types, where `make demo` has trained one."""
    weights = trained_weights(panoptic=False)
    if weights is None:
        return "box AP not compared: `make demo` trains the model that it takes"
    found = []
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            opts = ["MODEL.WEIGHTS", str(weights), "MODEL.DETR.INFERENCE_DTYPE", dtype, "OUTPUT_DIR", folder]
            cfg = load_config(config_file(panoptic=False), opts)
            model = Trainer.build_model(cfg)
            DetrCheckpointer(model).load(cfg.MODEL.WEIGHTS)
            with contextlib.redirect_stdout(io.StringIO()):
                found.append(Trainer.test(cfg, model.eval())["bbox"]["AP"])
    return f"box AP on shapes_val {found[0]:.2f} in float32, {found[1]:.2f} in bfloat16"
