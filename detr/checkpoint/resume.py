"""Whether a training can go on from a checkpoint: the same model, and an optimizer that can take the saved state."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detr.checkpoint.architecture import config_values
from detr.checkpoint.class_rows import differences, listed
from detr.checkpoint.optimizer_state import has_optimizer, lacks_moments, mismatch, overridden, saved_optimizers
from detr.errors import InputError

logger = logging.getLogger(__name__)

# Keys that Detectron2's checkpointer leaves alone: older versions saved them.
_NOT_SAVED_NOW = ("pixel_mean", "pixel_std", "anchor_generator.cell_anchors")


def check_resume(
    path: str,
    checkpoint: Mapping[str, Any],
    model: nn.Module,
    restored: Mapping[str, Any],
    saved_names: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Raises InputError where the model's tensors, its classes or an optimizer's state would not fit. Changes nothing.

    checkpoint: as it was read from ``path``; its ``model`` has the model's names
    restored: the objects besides the model that would take their state from the checkpoint, by their names in it
    saved_names, names: of the checkpoint's classes and of the model's; None where they are unknown

    Warns of settings of the optimizer that the checkpoint's replace.
    """
    reason = (
        _other_model(checkpoint["model"], model.state_dict())
        or _other_classes(saved_names, names)
        or _other_optimizer(checkpoint, model, restored)
    )
    if reason:
        back = "set it back, or start" if "MODEL." in reason or "SOLVER." in reason else "start"
        raise InputError(
            f"cannot resume from {path}: {reason}; {back} anew from its weights: without --resume, with MODEL.WEIGHTS "
            f"{path} and another OUTPUT_DIR"
        )
    for name, holder in restored.items():
        for optimizer, saved in saved_optimizers(holder, checkpoint.get(name)):
            if lines := overridden(optimizer, saved, model):
                logger.warning(
                    "resuming goes on with the checkpoint's settings, not the config's: %s", "; ".join(lines)
                )


def _other_model(saved: Mapping[str, Any], own: Mapping[str, Tensor]) -> str | None:
    values, saved_values = config_values(own), config_values(saved)
    differences = [
        f"{key} is {value} here and {saved_values[key]} in the checkpoint"
        for key, value in values.items()
        if key in saved_values and saved_values[key] != value
    ]
    if differences:
        return ", ".join(differences)
    missing = [key for key in own if key not in saved and not key.endswith(_NOT_SAVED_NOW)]
    unknown = [key for key in saved if key not in own and not any(name in key for name in _NOT_SAVED_NOW)]
    other = [key for key in own if key in saved and own[key].shape != saved[key].shape]
    for keys, text in ((missing, "it does not hold"), (unknown, "this model does not have")):
        if keys:
            return f"its model is another one: {text} {_first(keys)}"
    if other:
        shapes = f"{tuple(own[other[0]].shape)} here and {tuple(saved[other[0]].shape)} in the checkpoint"
        return f"its model is another one: {_first(other)} of another shape, {shapes}"
    return None


def _other_classes(saved: Sequence[str] | None, own: Sequence[str] | None) -> str | None:
    if not saved or not own or not (found := differences(saved, own)):
        return None
    return f"its classes have other names or another order than the data set's: {listed(found)}"


def _first(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more tensors"


def _other_optimizer(checkpoint: Mapping[str, Any], model: nn.Module, restored: Mapping[str, Any]) -> str | None:
    for name, holder in restored.items():
        state = checkpoint.get(name)
        pairs = list(saved_optimizers(holder, state))
        if has_optimizer(holder) and not pairs:
            return "it holds no optimizer's state, as a file of weights alone"
        if _lacks_grad_scaler(holder, state):
            return "SOLVER.AMP is float16 here, and was off or bfloat16 in the checkpoint"
        for optimizer, saved in pairs:
            if reason := mismatch(optimizer, saved, model):
                return reason
            if lacks_moments(saved) and _iteration(checkpoint, state) > 0:
                return "its optimizer's state is empty, as if no step had been taken"
    return None


def _lacks_grad_scaler(holder: Any, state: Any) -> bool:
    """Whether a trainer in float16 would find no state of its gradient scaler."""
    trainer, saved = getattr(holder, "_trainer", holder), state
    if isinstance(state, Mapping) and "_trainer" in state:
        saved = state["_trainer"]
    return (
        getattr(trainer, "grad_scaler", None) is not None and isinstance(saved, Mapping) and "grad_scaler" not in saved
    )


def _iteration(checkpoint: Mapping[str, Any], state: Any) -> int:
    """The last one before the checkpoint was saved; 0 where it does not tell."""
    found = [part.get("iteration") for part in (checkpoint, state) if isinstance(part, Mapping)]
    return max((value for value in found if isinstance(value, int)), default=0)
