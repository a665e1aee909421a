"""What a machine allows: its device, its cores, and about how long it needs."""

import os
import time

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm

from detr.errors import InputError
from detr.evaluation.evaluators import is_detr


def fit_machine(cfg: CfgNode, training: bool = False) -> None:
    """Takes the CPU for a CUDA device that is not there, and no more workers than cores; both are printed.

    Raises InputError for a training that asks for CUDA where there is none: it could take weeks. Also for one of
    several processes that would share a GPU, or use none where nccl, which knows GPUs alone, is between them.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if training:
            raise InputError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but CUDA is not available here. {_estimate_on_cpu(cfg)}"
                "Train on a machine with a GPU, or set MODEL.DEVICE cpu to train here"
            )
        cfg.MODEL.DEVICE = "cpu"
        _note("MODEL.DEVICE asks for CUDA, which is not available here: going on with the CPU")
    if training and comm.get_world_size() > 1 and dist.get_backend() == "nccl" and cfg.MODEL.DEVICE != "cuda":
        raise InputError(
            f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but several processes on a machine with GPUs use one each: set "
            "MODEL.DEVICE cuda, or hide the GPUs with CUDA_VISIBLE_DEVICES= to train on the CPU with torchrun"
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < cfg.DATALOADER.NUM_WORKERS:
        _note(f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS} on {cores} cores: going on with {cores}")
        cfg.DATALOADER.NUM_WORKERS = cores


def _note(text: str) -> None:
    if comm.is_main_process():
        print(text, flush=True)


def _estimate_on_cpu(cfg: CfgNode) -> str:
    """How long a training step would take here, in a sentence."""
    macs = _macs_of_a_step(cfg, size := _training_size(cfg))
    if macs is None:
        return ""
    seconds = macs / _macs_per_second()
    return (
        f"A step of {cfg.SOLVER.IMS_PER_BATCH} images of about {size[0]} x {size[1]} pixels would take about "
        f"{seconds:.1f} s on this CPU, 10,000 of them {seconds * 1e4 / 86400:.1f} days. "
    )


def seconds_on_cpu(cfg: CfgNode) -> float | None:
    """About how long a training step takes on this CPU, by the model's multiplications; None where they are unknown.

    torch's random numbers go on afterwards as if nothing had been computed: the training is the same without it.
    """
    with torch.random.fork_rng(devices=[]):
        macs = _macs_of_a_step(cfg, _training_size(cfg))
        return None if macs is None else macs / _macs_per_second()


def _training_size(cfg: CfgNode) -> tuple[int, int]:
    """The usual height and width of a training image, in pixels."""
    side = sorted(cfg.INPUT.MIN_SIZE_TRAIN)[len(cfg.INPUT.MIN_SIZE_TRAIN) // 2]
    return min(side, cfg.INPUT.MAX_SIZE_TRAIN), min(side * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)  # most photos are 4 : 3


def _macs_of_a_step(cfg: CfgNode, size: tuple[int, int]) -> float | None:
    if not is_detr(cfg):
        return None
    from detr.analysis import rough_training_macs  # only here: on a GPU nothing is counted

    try:
        return float(rough_training_macs(cfg, size) * cfg.SOLVER.IMS_PER_BATCH)
    except InputError:
        return None


def _macs_per_second() -> float:
    """What this CPU reaches in a convolution like those of res3, in single precision."""
    x, weight = torch.randn(1, 128, 100, 128), torch.randn(128, 128, 3, 3)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, weight, padding=1)
        times.append(time.perf_counter() - start)
    return 100 * 128 * weight.numel() / sorted(times)[2]
