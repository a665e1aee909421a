"""Models of timm, made for features of images of any size: built, frozen, and what is wrong where one cannot be."""

import difflib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from detr.errors import InputError

# How models of one image size are asked for any size; a constructor refuses what is not its own.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
# What a constructor or a forward raises for what it was not made for.
MISTAKES = (RuntimeError, AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError)


def create(name: str, arguments: Mapping[str, Any], pretrained: bool = False) -> Any:
    """``timm.create_model`` with ``features_only``, for any image size where the model can.

    name: in timm, with or without the tag of the weights; arguments: more of ``create_model``, with ``out_indices``
    pretrained: whether to fetch timm's weights; what goes wrong then is raised as it comes

    Raises InputError where timm is missing, for an unknown name, and for a model that cannot be built like this.
    """
    timm = _timm()
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() lists them"
        raise InputError(f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have: {hint}")
    for more in ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=pretrained, features_only=True, **{**more, **arguments})
        except MISTAKES as error:
            if isinstance(error, TypeError) and any(key in str(error) for key in more):
                continue
            if pretrained:
                raise
            raise InputError(_why_not(name, arguments, error)) from error
    raise AssertionError("the last try has nothing that could be refused")


def number_layers(body: nn.Module) -> dict[str, int]:
    """The layer of each parameter, by timm's count from the input; empty where features come without their model."""
    model = getattr(body, "model", None)
    if not hasattr(model, "group_matcher"):
        return {}
    group_parameters = _timm().models.group_parameters
    return {f"model.{name}": n for name, n in group_parameters(model, model.group_matcher(), reverse=True).items()}


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":  # timm is there, and something that it needs is not
            raise
        raise InputError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs timm, which is not installed: "
            "pip install 'detectron2-detr[timm]', or pip install timm"
        ) from None
    return timm


def _why_not(name: str, arguments: Mapping[str, Any], error: Exception) -> str:
    try:
        last_only = _timm().create_model(name, features_only=True, **{**arguments, "out_indices": (-1,)})
    except MISTAKES:
        return f"MODEL.TIMM.NAME {name} cannot be built as a backbone: {first_line(error)}"
    infos, indices = last_only.feature_info.info, arguments["out_indices"]
    if all(-len(infos) <= index < len(infos) for index in indices):
        return f"MODEL.TIMM.NAME {name} cannot give the features MODEL.TIMM.OUT_INDICES {indices}: {first_line(error)}"
    strides = ", ".join(f"{index} (stride {info['reduction']})" for index, info in enumerate(infos))
    return f"MODEL.TIMM.OUT_INDICES is {indices}, but {name} has these features: {strides}"


def freeze_stages(body: Any, model: str, freeze_at: int) -> None:
    """Freezes the features of strides up to 2 ** freeze_at and all that comes before them; 0 freezes nothing.

    body: as ``create`` returns it; model: its name in timm

    Raises InputError where it is not known which parameters these are.
    """
    infos = body.feature_info.info
    last = max((index for index, info in enumerate(infos) if info["reduction"] <= 2**freeze_at), default=None)
    if not freeze_at or last is None:
        return
    end = infos[last]["module"]
    # timm registers modules in the order in which they run, and renames some when it takes the features.
    names = (end, end.replace(".", "_", 1), f"model.{end}", f"body.{end}")
    modules = list(body.named_modules())
    within = [index for index, (name, _) in enumerate(modules) if f"{name}.".startswith(tuple(f"{x}." for x in names))]
    if not within:
        raise InputError(
            f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}, but where the stages of {model} end is not known: set it to 0"
        )
    for _, module in modules[: within[-1] + 1]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)


def freeze_norms(module: nn.Module, everywhere: bool) -> None:
    """Replaces batch norms by frozen ones, in place; timm's own, since some hold an activation too.

    everywhere: or only those whose weights are frozen, so that their statistics stay too
    """
    from timm.layers import freeze_batch_norm_2d

    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            freeze_norms(child, everywhere)
        elif everywhere or not any(parameter.requires_grad for parameter in child.parameters()):
            frozen = freeze_batch_norm_2d(child)
            frozen._forward_hooks.update(child._forward_hooks)  # some features are taken by a hook on a norm
            module.add_module(name, frozen)


def check_indices(indices: Sequence[int]) -> None:
    """Raises InputError for indices of features that no model can have."""
    if not indices or not all(isinstance(index, int) and not isinstance(index, bool) for index in indices):
        raise InputError(
            f"MODEL.TIMM.OUT_INDICES is {tuple(indices)}: it must be whole numbers, such as (1, 2, 3) or (-1,)"
        )


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
