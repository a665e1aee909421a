"""Optimizer and schedule of DETR (paper, sec. 4 and appendix A.4)."""

import logging
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm

from detr.config_node import SCHEDULE_PAIRS, settle_schedule
from detr.engine.layer_decay import layer_scales
from detr.errors import InputError

CLIP_TYPES = ("full_model", "value", "norm")
SCHEDULES = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
WARMUPS = ("linear", "constant")

logger = logging.getLogger(__name__)


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW (or SGD) with the backbone's own learning rate and clipping of the whole gradient.

    ``SOLVER.WEIGHT_DECAY`` holds for every parameter, norms and biases too, as in the original.
    Raises InputError for an unknown ``SOLVER.OPTIMIZER`` or ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE``.
    """
    for key, default in (("WEIGHT_DECAY_NORM", 0.0), ("WEIGHT_DECAY_BIAS", None), ("BIAS_LR_FACTOR", 1.0)):
        if cfg.SOLVER[key] != default:
            logger.warning("SOLVER.%s %s has no effect: WEIGHT_DECAY and BASE_LR hold for all", key, cfg.SOLVER[key])
    params = parameter_groups(
        model,
        cfg.SOLVER.BASE_LR,
        cfg.SOLVER.WEIGHT_DECAY,
        backbone_multiplier=cfg.SOLVER.BACKBONE_MULTIPLIER,
        layer_decay=cfg.SOLVER.LAYER_DECAY,
    )
    if not params:
        raise InputError("no parameter is left to train: everything is frozen")
    kinds = {"ADAMW": torch.optim.AdamW, "SGD": torch.optim.SGD}
    _check_choice("OPTIMIZER", cfg.SOLVER.OPTIMIZER, tuple(kinds))
    if cfg.SOLVER.BASE_LR < 0:
        raise InputError(f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR}: a learning rate is at least 0, such as 0.0001")
    kind, options = kinds[cfg.SOLVER.OPTIMIZER], _options(cfg)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED:
        _check_choice("CLIP_GRADIENTS.CLIP_TYPE", clip.CLIP_TYPE, CLIP_TYPES)
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
        optimizer = kind(params, **options)
        clip_full_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
        return optimizer
    return maybe_add_gradient_clipping(cfg, kind)(params, **options)


def _options(cfg: CfgNode) -> dict[str, Any]:
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return {"lr": cfg.SOLVER.BASE_LR, "momentum": cfg.SOLVER.MOMENTUM, "nesterov": cfg.SOLVER.NESTEROV}
    # A fused optimizer unscales the gradients of float16 itself, after our clipping: too late.
    scaled = cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.DTYPE == "float16"
    return {"lr": cfg.SOLVER.BASE_LR, "fused": not scaled}


def parameter_groups(
    model: torch.nn.Module,
    base_lr: float,
    weight_decay: float,
    backbone_multiplier: float = 0.1,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """The trainable parameters, as torch's optimizers take them; the backbone's learn with another rate.

    weight_decay: of all of them, norms and biases too
    backbone_multiplier: learning rate of the backbone / ``base_lr``
    layer_decay: of each layer of the backbone / that of the one after it (see ``layer_scales``)
    """
    scales = layer_scales(model, layer_decay) if layer_decay != 1 else {}
    groups: list[dict[str, Any]] = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay=weight_decay,
        lr_factor_func=lambda name: (
            (backbone_multiplier if ".backbone." in f".{name}" else 1.0) * scales.get(name, 1.0)
        ),
    )
    return groups


def build_adamw(
    params: list[dict[str, Any]], *, lr: float, weight_decay: float, max_norm: float = 0.1, amp: bool = False
) -> torch.optim.AdamW:
    """The optimizer of the configs in configs/lazy, as ``build_optimizer`` makes it of a YAML config.

    params: see ``parameter_groups``
    max_norm: of the whole gradient, which is clipped
    amp: whether the training scales its losses for mixed precision
    """
    # A fused optimizer unscales gradients itself, after our clipping: too late.
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay, fused=not amp)
    clip_full_model(optimizer, max_norm)
    return optimizer


def clip_full_model(optimizer: torch.optim.Optimizer, max_norm: float, norm_type: float = 2.0) -> None:
    """Before every step, scales all gradients together to a norm of at most ``max_norm``.

    Detectron2 clips each parameter separately, which is a different optimization.
    """

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip)


def check_schedule(cfg: CfgNode) -> None:
    """Raises InputError for what Detectron2's ``build_lr_scheduler`` does not know or cannot compute."""
    keys = cfg.SOLVER
    _check_choice("LR_SCHEDULER_NAME", keys.LR_SCHEDULER_NAME, SCHEDULES)
    _check_choice("WARMUP_METHOD", keys.WARMUP_METHOD, WARMUPS)
    if keys.LR_SCHEDULER_NAME == "WarmupCosineLR" and not 0 <= keys.BASE_LR_END <= keys.BASE_LR > 0:
        raise InputError(
            f"SOLVER.BASE_LR is {keys.BASE_LR} and SOLVER.BASE_LR_END is {keys.BASE_LR_END}: WarmupCosineLR goes down "
            "from the first, which must be above 0, to the second"
        )


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"SOLVER.{key} is {value!r}: it must be one of {', '.join(choices)}")


def check_batch_size(cfg: CfgNode) -> None:
    """Raises InputError for a batch that the ranks cannot share equally, or not compute in equal parts."""
    batch, ranks, reference = cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size(), cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference:  # Detectron2 scales the batch from so many ranks to those that there are
        ranks = reference
    if batch < 1 or batch % ranks:
        raise InputError(f"SOLVER.IMS_PER_BATCH {batch} must be a positive multiple of the number of GPUs, {ranks}")
    parts = cfg.SOLVER.ACCUMULATION_STEPS
    if parts < 1 or batch // ranks % parts:
        raise InputError(
            f"SOLVER.ACCUMULATION_STEPS is {parts}: it must be at least 1 and divide the images of a process in a "
            f"step, {batch // ranks} (SOLVER.IMS_PER_BATCH {batch} on {ranks})"
        )


def needs_data_size(cfg: CfgNode) -> bool:
    """Whether the schedule is in epochs of DATASETS.TRAIN. Raises InputError where it is, and that is empty."""
    settled = settle_schedule(cfg)
    in_epochs = [(x, a, b) for x, a, b in SCHEDULE_PAIRS if settled[x][a]]
    if in_epochs and not cfg.DATASETS.TRAIN:
        raise InputError(
            f"DATASETS.TRAIN is empty, so that {', '.join(f'{x}.{a} {settled[x][a]}' for x, a, _ in in_epochs)} cannot "
            f"be turned into iterations: set {', '.join(f'{x}.{b}' for x, _, b in in_epochs)}, or name the data set"
        )
    return bool(in_epochs)


def schedule_in_iterations(cfg: CfgNode, num_images: int) -> CfgNode:
    """Turns ``SOLVER.MAX_EPOCHS``, ``DROP_EPOCHS``, ``CHECKPOINT_EPOCHS`` and ``TEST.EVAL_EPOCHS`` into iterations.

    An epoch is num_images // IMS_PER_BATCH iterations (at least one), as the original drops the last,
    incomplete batch. Keys in epochs that were overruled by those in iterations, set later, do not count. Returns a
    changed, frozen copy. Raises InputError for a drop without an end or after
    it, and for a negative length.
    """
    cfg = settle_schedule(cfg)
    cfg.defrost()
    solver, epochs = cfg.SOLVER, cfg.SOLVER.MAX_EPOCHS
    if not epochs and solver.MAX_ITER < 0:
        raise InputError(f"SOLVER.MAX_ITER is {solver.MAX_ITER}: it must be at least 0")
    if epochs < 0 or any(drop >= epochs or drop <= 0 for drop in solver.DROP_EPOCHS):
        raise InputError(
            f"SOLVER.DROP_EPOCHS {tuple(solver.DROP_EPOCHS)} must lie between 0 and SOLVER.MAX_EPOCHS {epochs}"
        )
    iterations = max(num_images // solver.IMS_PER_BATCH, 1)
    if epochs:
        solver.MAX_ITER = iterations * epochs
    if solver.DROP_EPOCHS:
        solver.STEPS = tuple(iterations * drop for drop in solver.DROP_EPOCHS)
    if solver.CHECKPOINT_EPOCHS:
        solver.CHECKPOINT_PERIOD = iterations * solver.CHECKPOINT_EPOCHS
    if cfg.TEST.EVAL_EPOCHS:
        cfg.TEST.EVAL_PERIOD = iterations * cfg.TEST.EVAL_EPOCHS
    cfg.freeze()
    if epochs:
        logger.info(
            "%d epochs of %d images in batches of %d: MAX_ITER %d, STEPS %s",
            epochs,
            num_images,
            solver.IMS_PER_BATCH,
            solver.MAX_ITER,
            solver.STEPS,
        )
    return cfg


def keep_epochs(given: CfgNode, scaled: CfgNode, num_images: int) -> CfgNode:
    """``scaled``, where keys that ``given`` has in epochs are so many whole epochs of its own batches.

    given: as it was set; scaled: what Detectron2's ``auto_scale_workers`` makes of it in iterations, by
    SOLVER.REFERENCE_WORLD_SIZE. It divides the iterations of an epoch by the scale, but how many images the last,
    incomplete batch of an epoch has depends on the batch.
    """
    if scaled.SOLVER.IMS_PER_BATCH == given.SOLVER.IMS_PER_BATCH:
        return scaled
    given, scaled = given.clone(), scaled.clone()
    given.defrost()
    scaled.defrost()
    given.SOLVER.IMS_PER_BATCH = scaled.SOLVER.IMS_PER_BATCH
    in_epochs, exact = settle_schedule(given), schedule_in_iterations(given, num_images)
    for section, epochs, iterations in SCHEDULE_PAIRS:
        if in_epochs[section][epochs]:
            scaled[section][iterations] = exact[section][iterations]
    scaled.freeze()
    return scaled
