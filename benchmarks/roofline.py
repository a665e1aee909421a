"""How fast the machine itself can be: a row's multiplications at the highest rate that its CPU was seen to reach.

A row that is near it cannot be made much faster by other code, only by less work.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.inference import image_size
from benchmarks.timing import Settings
from benchmarks.training import OBJECTS, batch_size
from detr.analysis import Analysis, analyze
from tests.parity.pairs import config

PEAK_RUNS = 20
CHANNELS, HEIGHT, WIDTH = 256, 100, 134  # of a convolution that is bound by arithmetic and not by memory
Work = Callable[[Settings], float]  # multiply-accumulate operations


@functools.cache
def peak(dtype: torch.dtype) -> float:
    """10^9 floating-point operations a second: the best of some runs of a 3 x 3 convolution by oneDNN."""
    x = torch.randn(1, CHANNELS, HEIGHT, WIDTH, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    with torch.no_grad():
        for _ in range(PEAK_RUNS):
            start = time.perf_counter()
            F.conv2d(x, weight, padding=1)
            best = min(best, time.perf_counter() - start)
    return 2 * weight.numel() * HEIGHT * WIDTH / best / 1e9


def bound(part: str, settings: Settings) -> dict[str, Any] | None:
    """The least seconds that the part's products take here; None where the part is not about products."""
    if part not in WORKS:
        return None
    dtype = torch.bfloat16 if part in ("bfloat16", "training-step-bf16") else torch.float32
    gflop, rate = 2 * WORKS[part](settings) / 1e9, peak(dtype)
    return {"gflop": gflop, "dtype": str(dtype).removeprefix("torch."), "peak": rate, "seconds": gflop / rate}


def _inference(name: str, settings: Settings, folder: str = "COCO-Detection", kept: int | None = None) -> float:
    return _analysis(name, folder, image_size(settings), 1, kept).total.macs


def _training(settings: Settings) -> float:
    images, height, width = batch_size(settings)
    return _analysis("detr_R_50", "COCO-Detection", (height, width), images, None).training_macs


@functools.cache
def _analysis(name: str, folder: str, size: tuple[int, int], batch: int, kept: int | None) -> Analysis:
    cfg = config(name, folder=folder)
    return analyze(cfg, size=size, batch=batch, objects=OBJECTS, queries_kept=kept)


_PANOPTIC = functools.partial(_inference, "detr_R_50", folder="COCO-PanopticSegmentation")
WORKS: dict[str, Work] = {
    "inference": functools.partial(_inference, "detr_R_50"),
    "bfloat16": functools.partial(_inference, "detr_R_50"),
    "openvino": functools.partial(_inference, "detr_R_50"),
    "dc5": functools.partial(_inference, "detr_R_50_DC5"),
    "panoptic-100": functools.partial(_PANOPTIC, kept=100),
    "panoptic-20": functools.partial(_PANOPTIC, kept=20),
    "training-step": _training,
    "training-step-bf16": _training,
}
