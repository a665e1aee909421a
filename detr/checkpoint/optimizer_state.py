"""Whether an optimizer can take a saved state: its kind, its parameter groups and the shapes of its moments.

torch compares none of this but the groups' lengths. A state of other shapes is loaded, and crashes the next step.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

State = Mapping[str, Any]  # of an optimizer, as its state_dict() returns it

# States of AdamW and SGD that have their parameter's shape; those of other optimizers may have any.
_LIKE_PARAMETER = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
# Settings that change how a step is computed, not what it does, or whose value follows the schedule.
_NOT_COMPARED = {"params", "param_names", "lr", "foreach", "fused", "capturable", "differentiable"}
_CONFIG_KEYS = {
    "initial_lr": "SOLVER.BASE_LR",
    "weight_decay": "SOLVER.WEIGHT_DECAY",
    "momentum": "SOLVER.MOMENTUM",
    "nesterov": "SOLVER.NESTEROV",
}


def saved_optimizers(holder: Any, saved: object) -> Iterator[tuple[Optimizer, State]]:
    """Each optimizer that ``holder`` would restore, with its saved state.

    holder: an optimizer, one of Detectron2's trainers, or any other object whose ``state_dict`` names its attributes
    saved: the holder's saved state
    """
    if not isinstance(saved, Mapping):
        return
    if isinstance(holder, Optimizer):
        yield holder, saved
        return
    for name, value in saved.items():
        part = getattr(holder, name, None) if isinstance(name, str) and isinstance(value, Mapping) else None
        if part is not None:
            yield from saved_optimizers(part, value)


def has_optimizer(holder: Any) -> bool:
    """Whether the holder's state needs an optimizer's: one of Detectron2's trainers, or an optimizer itself."""
    if isinstance(holder, LRScheduler):
        return False
    return isinstance(holder, Optimizer) or isinstance(getattr(holder, "optimizer", None), Optimizer)


def mismatch(optimizer: Optimizer, saved: State, model: nn.Module) -> str | None:
    """Why the optimizer cannot take the saved state; None where it can.

    model: its tensors are those of the checkpoint
    """
    groups, saved_groups = optimizer.param_groups, saved.get("param_groups")
    if not isinstance(saved_groups, list) or not saved_groups or not isinstance(saved.get("state"), Mapping):
        return "its optimizer's state is incomplete"
    lacking = sorted(_settings(groups[0]).keys() - saved_groups[0].keys() - {"initial_lr"})
    if lacking:
        kinds = [_kind(group) for group in (saved_groups[0], groups[0])]
        if all(kinds) and kinds[0] != kinds[1]:
            return f"SOLVER.OPTIMIZER is {kinds[1]} here and {kinds[0]} in the checkpoint"
        return f"its optimizer is of another kind: it has no {', '.join(lacking)}"
    sizes, saved_sizes = ([len(group["params"]) for group in some] for some in (groups, saved_groups))
    if sizes != saved_sizes:
        return _other_groups(sizes, saved_sizes, model)
    return _other_state(optimizer, saved, model)


def overridden(optimizer: Optimizer, saved: State, model: nn.Module) -> list[str]:
    """The settings that the saved state replaces by others, with both values. The state must fit."""
    backbone = {parameter for name, parameter in model.named_parameters() if ".backbone." in f".{name}"}
    pairs = list(zip(optimizer.param_groups, saved["param_groups"], strict=True))
    pairs.sort(key=lambda pair: backbone.issuperset(pair[0]["params"]))  # BASE_LR is that of the others
    found: dict[str, tuple[Any, Any]] = {}
    for new, old in pairs:
        is_backbone = backbone.issuperset(new["params"])
        new_values, old_values = (
            _values(group, base["initial_lr"] if is_backbone and "initial_lr" in base else None)
            for group, base in zip((new, old), pairs[0], strict=True)
        )
        for name in sorted(new_values.keys() & old_values.keys()):
            if new_values[name] != old_values[name]:
                found.setdefault(name, (old_values[name], new_values[name]))
    return [f"{name} {old}, not {new}" for name, (old, new) in found.items()]


def _values(group: Mapping[str, Any], base_lr: float | None) -> dict[str, Any]:
    """A group's settings, by their config key where they have one.

    base_lr: that of which the group's learning rate is a multiple; None where it is none
    """
    values = {_CONFIG_KEYS.get(key, key): value for key, value in group.items() if key not in _NOT_COMPARED}
    if base_lr and "SOLVER.BASE_LR" in values:
        values["SOLVER.BACKBONE_MULTIPLIER"] = round(values.pop("SOLVER.BASE_LR") / base_lr, 9)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """Those that have a value: flags come and go with torch's versions."""
    return {key: value for key, value in group.items() if key not in _NOT_COMPARED and not _is_flag(value)}


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _kind(group: Mapping[str, Any]) -> str | None:
    """By SOLVER.OPTIMIZER's name."""
    return "ADAMW" if "betas" in group else "SGD" if {"momentum", "dampening"} <= group.keys() else None


def _other_groups(sizes: list[int], saved_sizes: list[int], model: nn.Module) -> str:
    total, saved_total = sum(sizes), sum(saved_sizes)
    if total == saved_total:
        return (
            f"its optimizer has {len(saved_sizes)} groups of parameters ({_listed(saved_sizes)}) and this one "
            f"{len(sizes)} ({_listed(sizes)}), which depend on SOLVER.BACKBONE_MULTIPLIER (1.0: one group)"
        )
    text = f"its optimizer trains {saved_total} parameters and this one {total}"
    key = _freezing_key(saved_total, model)
    return f"{text}: {key}" if key else f"{text}, which depend on MODEL.BACKBONE.FREEZE_AT and MODEL.DETR.FREEZE_DETR"


def _freezing_key(saved_total: int, model: nn.Module) -> str | None:
    """The key and the value with which the model would train as many parameters; None where none would."""
    parameters = dict(model.named_parameters())
    masks = [name for name in parameters if name.startswith("mask_head.")]
    if masks and saved_total == len(masks):
        return "MODEL.DETR.FREEZE_DETR was True"
    if masks and not any(p.requires_grad for name, p in parameters.items() if name not in masks):
        return "MODEL.DETR.FREEZE_DETR was False"
    stages = ("backbone.stem.", "backbone.res2.", "backbone.res3.", "backbone.res4.", "backbone.res5.")
    # Freezing turns batch norms' parameters into buffers: they may have been parameters in the checkpoint.
    norms = [name for name, _ in model.named_buffers() if name.endswith((".weight", ".bias"))]
    for frozen in range(len(stages) + 1):
        for names in (list(parameters), [*parameters, *norms]):
            if saved_total == sum(not name.startswith(stages[:frozen]) for name in names):
                return f"MODEL.BACKBONE.FREEZE_AT was {frozen}"
    return None


def _listed(sizes: list[int]) -> str:
    return " + ".join(map(str, sizes))


def _other_state(optimizer: Optimizer, saved: State, model: nn.Module) -> str | None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    state: Mapping[Any, Mapping[str, Any]] = saved["state"]
    moments = sorted({name for entry in state.values() for name in entry} & set(_LIKE_PARAMETER))
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, key in zip(group["params"], saved_group["params"], strict=True):
            entry = state.get(key)
            if not entry:
                continue  # a parameter that had no gradient yet
            name = names.get(parameter, f"parameter {key}")
            for moment in moments:
                if moment not in entry:
                    if "betas" in group:
                        return f"its optimizer's state is incomplete: {name} has no {moment}"
                elif isinstance(entry[moment], Tensor) and entry[moment].shape != parameter.shape:
                    shapes = f"{tuple(entry[moment].shape)}, and {tuple(parameter.shape)} here"
                    return f"its optimizer has other parameters or another order: {moment} of {name} is {shapes}"
    return None


def lacks_moments(saved: State) -> bool:
    """Whether the state is that of an Adam before its first step."""
    return "betas" in saved["param_groups"][0] and not saved["state"]
