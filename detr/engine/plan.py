"""The plan of a fine-tuning: batch, learning rate and schedule, by the data set's size and the machine's memory."""

import math
import os
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode

# Beside the model, an image of a training step takes about 1 GB for a million pixels (R50, 512 x 640, single precision;
# benchmarks/RESULTS.md); with a margin for objects, masks and fragmentation:
GB_PER_MEGAPIXEL = 1.5
MODEL_GB = 1.5  # weights, gradients, AdamW's averages, the program
LARGEST_BATCH = 16  # the paper's, for which its learning rate is
LARGEST_BATCH_ON_CPU = 8  # where a larger one is no faster, and takes fewer steps
STEPS_PER_EPOCH = 8  # at least, as long as there are images for them
EPOCHS_FROM_NOTHING = 300  # the paper's schedule (sec. 4)
PAPERS_LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Plan:
    """The values of a schedule, and why they are these.

    batch: images of a step, over all GPUs
    learning_rate: of the transformer
    epochs, warmup: how long to train, and the share of it in which the learning rate rises
    patience: evaluations, one an epoch, without a better result after which the training ends
    reasons: a line on each
    """

    batch: int
    learning_rate: float
    epochs: int
    warmup: int
    patience: int
    reasons: tuple[str, ...]


def make_plan(
    images: int,
    megapixels: float,
    memory_gb: float,
    *,
    on_gpu: bool,
    pretrained: bool,
    batch: int | None = None,
    epochs: int | None = None,
    num_gpus: int = 1,
) -> Plan:
    """The rule.

    images: of the training set
    megapixels: of the largest training image, as it is resized
    memory_gb: what a step may take, of each GPU
    pretrained: whether the transformer starts from trained weights
    batch, epochs: what the user has set
    num_gpus: which have equal shares of the batch
    """
    reasons = []
    if batch is None:
        fits = (memory_gb - MODEL_GB) / (GB_PER_MEGAPIXEL * megapixels)
        largest = LARGEST_BATCH if on_gpu else LARGEST_BATCH_ON_CPU
        share = min(fits, largest / num_gpus, images / STEPS_PER_EPOCH / num_gpus)
        share = 2 ** int(math.log2(max(share, 1)))
        batch = share * num_gpus
        times = f", {num_gpus} processes times {share}" if num_gpus > 1 else ""
        reasons.append(
            f"batch {batch}{times}: the largest power of 2 up to {largest} that fits into {memory_gb:.0f} GB and "
            f"leaves {STEPS_PER_EPOCH} steps to an epoch"
        )
    learning_rate = float(f"{PAPERS_LEARNING_RATE * math.sqrt(batch / LARGEST_BATCH):.1g}")
    reasons.append(f"learning rate {learning_rate:g}: the paper's 1e-4 for batches of 16, by the root of the batch")
    if epochs is None and not pretrained:
        epochs = EPOCHS_FROM_NOTHING
        reasons.append(f"{epochs} epochs: from random weights, the paper's schedule")
    elif epochs is None:
        epochs = round(min(max(20 * math.sqrt(1000 / images), 10), 100))
        reasons.append(f"{epochs} epochs: 20 for 1,000 images, by the root of their number, from 10 to 100")
    steps = epochs * max(images // batch, 1)
    warmup = min(steps // 20, 500)
    patience = max(math.ceil(epochs / 4), 5)
    reasons.append(
        f"warm-up of {warmup} steps, a twentieth of the training, then a cosine; {patience} epochs without a better "
        "result end it"
    )
    return Plan(batch, learning_rate, epochs, warmup, patience, tuple(reasons))


def plan_for(
    cfg: CfgNode, images: int, *, pretrained: bool, batch: int | None, epochs: int | None, num_gpus: int = 1
) -> Plan:
    """The plan for a config's images and device; the other arguments are those of ``make_plan``."""
    side = max(cfg.INPUT.MIN_SIZE_TRAIN) or cfg.INPUT.MAX_SIZE_TRAIN  # 0: images keep their size
    megapixels = side * min(side * 4 / 3, cfg.INPUT.MAX_SIZE_TRAIN) / 1e6  # most photos are 4 : 3
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    memory = _memory_gb(on_gpu)
    return make_plan(
        images,
        megapixels,
        memory,
        on_gpu=on_gpu,
        pretrained=pretrained,
        batch=batch,
        epochs=epochs,
        num_gpus=num_gpus,
    )


def apply_plan(cfg: CfgNode, plan: Plan) -> None:
    """Writes a plan into a config, in place."""
    values = {
        "SOLVER.IMS_PER_BATCH": plan.batch,
        "SOLVER.BASE_LR": plan.learning_rate,
        "SOLVER.MAX_EPOCHS": plan.epochs,
        "SOLVER.DROP_EPOCHS": (),
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.WARMUP_ITERS": plan.warmup,
        "SOLVER.WARMUP_FACTOR": 0.01,
        "SOLVER.PATIENCE": plan.patience,
        "SOLVER.CHECKPOINT_EPOCHS": 1,
        "SOLVER.CHECKPOINTS_KEPT": 1,
        "TEST.EVAL_EPOCHS": 1,
        "TEST.LOSS": True,
    }
    cfg.merge_from_list([x for pair in values.items() for x in pair])


def _memory_gb(on_gpu: bool) -> float:
    """Of the GPU; without one, half of what the machine has."""
    if on_gpu:
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory) / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e9
