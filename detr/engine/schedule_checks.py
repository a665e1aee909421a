"""Whether a schedule and image sizes fit a data set: what does not, with the value to set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode

from detr.data.annotations import decide, flatten

LONGEST_WARMUP = 0.1  # of the training
EARLIEST_DROP = 0.3  # of the training; the paper's is at 2/3, the released models' at 4/5
FEWEST_ITERATIONS = 200  # in which a DETR learns something, even from trained weights
ENLARGED, SHRUNK = 2.5, 0.5  # sizes of images in training, relative to those in the files
SMALL_OBJECT = 12  # pixels
OTHER_TEST_SIZE = 1.5  # MIN_SIZE_TEST relative to the nearest of MIN_SIZE_TRAIN


@dataclass
class DataSizes:
    """sizes (N, 2): height and width of N images in pixels
    objects (M,): square roots of the boxes' areas, relative to the square root of their image's area
    """

    sizes: np.ndarray
    objects: np.ndarray

    @classmethod
    def measure(cls, dicts: Sequence[dict[str, Any]]) -> "DataSizes":
        """dicts: clean; images of unknown size are left out, and objects of panoptic sets are not measured"""
        sizes = np.array([(x["height"], x["width"]) for x in dicts if "height" in x and "width" in x], dtype=float)
        boxed = [x for x in dicts if "annotations" in x]
        if len(boxed) < len(dicts) or len(sizes) < len(dicts):
            return cls(sizes.reshape(-1, 2), np.zeros(0))
        flat, image, height, width = flatten(dicts)
        fates = decide(flat, height, width)
        sides = (fates.boxes[:, 2:] - fates.boxes[:, :2])[fates.objects]
        areas = sizes.prod(axis=1)[image[fates.objects]]
        return cls(sizes.reshape(-1, 2), np.sqrt(sides.prod(axis=1) / areas))


def schedule_warnings(cfg: CfgNode, data: DataSizes) -> list[str]:
    """A line for each thing that does not fit.

    cfg: its schedule in iterations (see ``schedule_in_iterations``); data: of the training set
    """
    return [*_schedule(cfg, len(data.sizes)), *(_sizes(cfg, data) if len(data.sizes) else [])]


def _schedule(cfg: CfgNode, images: int) -> list[str]:
    solver, lines = cfg.SOLVER, []
    total, epochs = solver.MAX_ITER, solver.MAX_EPOCHS
    per_epoch = total // epochs if epochs else 0
    length = f"{epochs} epochs, {total} iterations" if epochs else f"{total} iterations"
    if 0 < images < solver.IMS_PER_BATCH:
        lines.append(
            f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} is more than the {images} training images, so that a batch "
            f"repeats some of them: set SOLVER.IMS_PER_BATCH {images}"
        )
    if total < FEWEST_ITERATIONS:
        enough = 5 * FEWEST_ITERATIONS
        value = f"SOLVER.MAX_EPOCHS {-(-enough // per_epoch)}" if per_epoch else f"SOLVER.MAX_ITER {enough}"
        lines.append(f"a training of {length} is too short to learn much: set {value}, or more from random weights")
        total = enough  # what follows is advice for a training that is long enough
        if per_epoch:
            epochs, total = -(-enough // per_epoch), -(-enough // per_epoch) * per_epoch
    if solver.WARMUP_FACTOR < 1 and LONGEST_WARMUP * total < solver.WARMUP_ITERS:
        lines.append(
            f"the warm-up of the learning rate, {solver.WARMUP_ITERS} iterations, is a large part of the training of "
            f"{length}: set SOLVER.WARMUP_ITERS {min(total // 20, solver.WARMUP_ITERS)}"
        )
    if "MultiStep" in solver.LR_SCHEDULER_NAME and solver.STEPS:
        first = min(solver.STEPS)
        if max(solver.STEPS) >= solver.MAX_ITER:
            lines.append(
                f"the drop of the learning rate after {max(solver.STEPS)} iterations comes after the training of "
                f"{length}: set {_drop(epochs, total)}"
            )
        elif first < EARLIEST_DROP * solver.MAX_ITER:
            lines.append(
                f"the learning rate drops after {first} iterations, early in the training of {length}, and little is "
                f"learned after it: set {_drop(epochs, total)}"
            )
    period = cfg.TEST.EVAL_PERIOD
    if cfg.DATASETS.TEST and period > solver.MAX_ITER:
        value = "TEST.EVAL_EPOCHS 1" if per_epoch else f"TEST.EVAL_PERIOD {max(total // 10, 1)}"
        lines.append(
            f"the evaluation period, {period} iterations, is longer than the training of {length}, which is evaluated "
            f"at its end only: set {value}"
        )
    return lines


def _drop(epochs: int, total: int) -> str:
    if epochs > 1:
        return f'SOLVER.DROP_EPOCHS "({max(epochs * 4 // 5, 1)},)"'
    return f'SOLVER.STEPS "({total * 4 // 5},)"'


def _sizes(cfg: CfgNode, data: DataSizes) -> list[str]:
    wanted, lines = sorted(cfg.INPUT.MIN_SIZE_TRAIN), []
    side = wanted[len(wanted) // 2]
    short, long = data.sizes.min(axis=1), data.sizes.max(axis=1)
    if not side:  # Detectron2's way to leave sizes as they are
        return []
    scales = np.minimum(side / short, cfg.INPUT.MAX_SIZE_TRAIN / long)
    scale, (height, width) = float(np.median(scales)), np.median(data.sizes, axis=0).astype(int)
    images = f"of about {width} x {height} pixels"
    objects = float(np.median(data.objects * np.sqrt(height * width))) if len(data.objects) else None
    if scale > ENLARGED:
        lines.append(
            f"the training images {images} are enlarged {scale:.1f} times, which costs time and adds nothing: set "
            f"{_size_keys(float(np.median(short)) * 1.5)}"
        )
    elif objects is not None and scale < SHRUNK and objects * scale < SMALL_OBJECT:
        enough = 2 * SMALL_OBJECT / objects * min(height, width)
        lines.append(
            f"the training images {images} are made {1 / scale:.1f} times smaller, so that half of the objects have "
            f"less than {SMALL_OBJECT} pixels a side: set {_size_keys(enough)} "
            "if memory allows, or cut the images into tiles"
        )
    test = cfg.INPUT.MIN_SIZE_TEST
    nearest = min(max(test, wanted[0]), wanted[-1])
    if test and cfg.DATASETS.TEST and max(test / nearest, nearest / test) > OTHER_TEST_SIZE:
        lines.append(
            f"INPUT.MIN_SIZE_TEST {test} is far from the sizes of the training, {wanted[0]}"
            f"{f' to {wanted[-1]}' if len(wanted) > 1 else ''}, so that objects look larger or smaller than those "
            f"learned: set INPUT.MIN_SIZE_TEST {wanted[-1]} INPUT.MAX_SIZE_TEST {cfg.INPUT.MAX_SIZE_TRAIN}"
        )
    return lines


def _size_keys(side: float) -> str:
    """The keys for images of a shorter side of about ``side`` pixels, which are rounded to 32."""
    rounded = max(round(side / 32), 2) * 32
    return (
        f'INPUT.MIN_SIZE_TRAIN "({rounded},)" INPUT.MAX_SIZE_TRAIN {rounded * 5 // 3} INPUT.MIN_SIZE_TEST {rounded} '
        f"INPUT.MAX_SIZE_TEST {rounded * 5 // 3}"
    )
