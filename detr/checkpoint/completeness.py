"""Whether a state dict of a ``Detr`` is whole: what its own layers say that there must be more of."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from detr.checkpoint.rows import CLASS_KEYS, QUERY_KEY
from detr.errors import InputError

_LINEAR = ("weight", "bias")
_NORM = ("weight", "bias", "running_mean", "running_var")
_ATTENTION = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


def missing_keys(state: Mapping[str, Tensor]) -> list[str]:
    """The tensors that a whole DETR with these layers has besides those that are there, sorted.

    Layers and blocks are counted by their highest number. Of a backbone that is no ResNet nothing is known.
    """
    return sorted(_expected(state) - state.keys())


def check_class_head(state: Mapping[str, Tensor]) -> None:
    """Raises InputError for half a class head, whose rows nobody could count."""
    found = [key for key in CLASS_KEYS if key in state]
    if len(found) == 1 or (found and len(state[CLASS_KEYS[0]]) != len(state[CLASS_KEYS[1]])):
        raise InputError(f"{' and '.join(CLASS_KEYS)} do not fit each other: one is missing, or they differ in length")


def _expected(state: Mapping[str, Tensor]) -> set[str]:
    keys = {*CLASS_KEYS, QUERY_KEY, *_each("input_proj", _LINEAR), *_each("transformer.decoder.norm", _LINEAR)}
    for i in range(3):
        keys |= _each(f"bbox_embed.layers.{i}", _LINEAR)
    for kind, attentions, norms in (("encoder", ("self_attn",), 2), ("decoder", ("self_attn", "multihead_attn"), 3)):
        for i in _numbers(state, rf"transformer\.{kind}\.layers\.(\d+)\."):
            layer = f"transformer.{kind}.layers.{i}"
            for attention in attentions:
                keys |= _each(f"{layer}.{attention}", _ATTENTION)
            for name in ("linear1", "linear2", *(f"norm{k + 1}" for k in range(norms))):
                keys |= _each(f"{layer}.{name}", _LINEAR)
    if any(key.startswith("mask_head.") for key in state):
        layers = (*(f"{kind}{i}" for kind in ("lay", "gn") for i in range(1, 6)), "adapter1", "adapter2", "adapter3")
        for name in (*layers, "out_lay", "attention.q_linear", "attention.k_linear"):
            keys |= _each(f"mask_head.{name}", _LINEAR)
    if any(key.startswith("backbone.stem.conv1.") for key in state):
        keys |= _resnet(state)
    return keys


def _resnet(state: Mapping[str, Tensor]) -> set[str]:
    bottleneck = any(re.fullmatch(r"backbone\.res\d\.\d+\.conv3\..+", key) for key in state)
    keys = _convolution("backbone.stem.conv1")
    for stage in (2, 3, 4, 5):
        for block in _numbers(state, rf"backbone\.res{stage}\.(\d+)\."):
            for k in (1, 2, 3) if bottleneck else (1, 2):
                keys |= _convolution(f"backbone.res{stage}.{block}.conv{k}")
            if block == 0 and (bottleneck or stage > 2):
                keys |= _convolution(f"backbone.res{stage}.0.shortcut")
    return keys


def _convolution(name: str) -> set[str]:
    return {f"{name}.weight", *_each(f"{name}.norm", _NORM)}


def _each(name: str, parameters: Iterable[str]) -> set[str]:
    return {f"{name}.{parameter}" for parameter in parameters}


def _numbers(state: Mapping[str, Tensor], pattern: str) -> range:
    """0 to the highest number in the names, and at least 0: one that has no layer lacks them all."""
    found = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    return range(max(found, default=0) + 1)
