"""What a training or an evaluation is about to do, on one screen."""

from collections.abc import Mapping, Sequence

import torch
from detectron2.config import CfgNode
from fvcore.common.checkpoint import Checkpointer

from detr.data.metadata import class_names
from detr.data.statistics import Row, log_table
from detr.engine.machine import seconds_on_cpu
from detr.engine.terminal import few, format_seconds, is_quiet, show_section
from detr.evaluation.evaluators import is_detr

REINITIALIZED = 6  # lines about parts without weights


def report_data(rows: Mapping[str, Row]) -> None:
    """Logs the table of what data sets hold, and shows its main numbers with the classes.

    rows: as ``log_table`` takes them, by name or by several names with commas between
    """
    log_table(rows)
    if not rows:
        return
    width = max(map(len, rows))
    lines = [f"{name:<{width}}  {_counts(row)}" for name, row in rows.items()]
    classes = class_names(next(iter(rows)).split(", ")[0])
    if classes:
        lines.append(f"{len(classes)} {'class' if len(classes) == 1 else 'classes'}: {few(classes)}")
    show_section("Data", lines)


def _counts(row: Row) -> str:
    text = f"{row['images']:,} images, {row['objects']:,} objects, at most {row['most objects in an image']} in one"
    dropped = row.get("boxes without area in the image, dropped")
    return f"{text}, {dropped:,} boxes dropped" if dropped else text


def show_training(
    cfg: CfgNode, model: torch.nn.Module, checkpointer: Checkpointer, start: int, test_images: int
) -> None:
    """Model, weights and schedule, where the terminal is quiet.

    cfg: its schedule in iterations; start: the first iteration; test_images: of one evaluation
    """
    if is_quiet():
        _show_model(cfg, model)
        source = f"{checkpointer.get_checkpoint_file()}, with optimizer and schedule" if start else cfg.MODEL.WEIGHTS
        pretrained = ", ".join(getattr(checkpointer, "pretrained", []))
        if pretrained and not source:
            show_section("Weights", [f"backbone: timm's {pretrained}", "the rest: random"])
        else:
            _show_weights(source, getattr(checkpointer, "reinitialized", []))
        _show_schedule(cfg, start, test_images)


def show_evaluation(cfg: CfgNode, model: torch.nn.Module, checkpointer: Checkpointer, resume: bool) -> None:
    """Model and weights, where the terminal is quiet. resume: whether the weights are the last checkpoint's, if any"""
    if is_quiet():
        _show_model(cfg, model)
        last = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else ""
        _show_weights(last or cfg.MODEL.WEIGHTS or cfg.MODEL.DETR.EXPORTED, [])


def _show_model(cfg: CfgNode, model: torch.nn.Module) -> None:
    """The model's kind, backbone and size."""
    parameters = list(model.parameters())
    total, trained = (
        sum(x.numel() for x in parameters),
        sum(x.numel() for x in parameters if x.requires_grad),
    )
    backbone = cfg.MODEL.BACKBONE.NAME.removeprefix("build_").removesuffix("_backbone").replace("_", " ")
    if backbone.startswith("resnet"):
        backbone += str(cfg.MODEL.RESNETS.DEPTH)
    elif backbone == "timm":
        backbone = f"{cfg.MODEL.TIMM.NAME} of timm"
    size = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    parts = [cfg.MODEL.META_ARCHITECTURE, backbone, f"{_millions(total)} parameters"]
    if _millions(trained) != _millions(total):
        parts[-1] += f", {_millions(trained)} of them trained"
    parts.append(f"{size / 2**20:.0f} MB")
    if is_detr(cfg):
        tasks = ["boxes"] + ["masks"] * cfg.MODEL.MASK_ON + ["panoptic maps"] * cfg.MODEL.DETR.PANOPTIC.ENABLED
        parts += [f"{cfg.MODEL.DETR.NUM_OBJECT_QUERIES} queries", ", ".join(tasks)]
    show_section("Model", ["; ".join(parts)])


def _millions(number: int) -> str:
    return f"{number / 1e6:.{1 if number >= 1e6 else 2}f} M"


def _show_weights(source: str, reinitialized: Sequence[str]) -> None:
    """source: what was loaded, "" for nothing; reinitialized: the checkpointer's lines about parts without weights"""
    if not source:
        show_section("Weights", ["random"])
        return
    more = len(reinitialized) - REINITIALIZED
    lines = [source, *reinitialized[:REINITIALIZED]]
    show_section("Weights", [*lines, f"and {more} more parts, see log.txt"] if more > 0 else lines)


def _show_schedule(cfg: CfgNode, start: int, test_images: int = 0) -> None:
    """The schedule, and about how long it will take.

    cfg: its schedule in iterations; start: the first iteration; test_images: of one evaluation
    """
    solver = cfg.SOLVER
    per_epoch = solver.MAX_ITER // solver.MAX_EPOCHS if solver.MAX_EPOCHS else 0

    def when(iteration: int) -> str:
        if per_epoch and iteration % per_epoch == 0:
            return f"{iteration // per_epoch} epoch{'s' if iteration > per_epoch else ''}"
        return f"{iteration:,} iterations"

    length = when(solver.MAX_ITER)
    if per_epoch:
        length += f" of {per_epoch:,} iterations"
    lines = [f"{length}, {solver.IMS_PER_BATCH} images each, on {cfg.MODEL.DEVICE}"]
    if start:
        lines[0] += f"; {start:,} iterations are done"
    rate = [f"learning rate {solver.BASE_LR:g}"]
    if is_detr(cfg) and solver.BACKBONE_MULTIPLIER != 1:
        rate[0] += f" (backbone {solver.BASE_LR * solver.BACKBONE_MULTIPLIER:g})"
    if solver.WARMUP_ITERS and solver.WARMUP_FACTOR < 1:
        rate.append(f"warm-up over {solver.WARMUP_ITERS} iterations")
    if "Cosine" in solver.LR_SCHEDULER_NAME:
        rate.append("then a cosine to 0")
    elif solver.STEPS:
        rate.append(f"times {solver.GAMMA:g} after {' and '.join(map(when, solver.STEPS))}")
    lines.append(", ".join(rate))
    period = cfg.TEST.EVAL_PERIOD
    if cfg.DATASETS.TEST:
        often = 0 < period < solver.MAX_ITER
        lines.append(f"evaluation every {when(period).removeprefix('1 ')}" if often else "evaluation at the end")
    lines.append(_time(cfg, start, test_images))
    show_section("Schedule", lines)


def _time(cfg: CfgNode, start: int, test_images: int) -> str:
    if start >= cfg.SOLVER.MAX_ITER:
        return "the training is complete, and is only evaluated again"
    if cfg.MODEL.DEVICE != "cpu":
        return "the time left is measured in the first steps, and shown beside the bar"
    step = seconds_on_cpu(cfg)
    if step is None:
        return "the time left is measured in the first steps"
    period = cfg.TEST.EVAL_PERIOD or cfg.SOLVER.MAX_ITER
    evaluations = -(-cfg.SOLVER.MAX_ITER // period) - start // period
    # An image takes a third of the multiplications that it takes in training, where gradients are computed too.
    evaluating = evaluations * test_images * step / cfg.SOLVER.IMS_PER_BATCH / 3
    return f"about {format_seconds((cfg.SOLVER.MAX_ITER - start) * step + evaluating)} on this CPU, a rough estimate"
