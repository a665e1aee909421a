"""The architecture of a ``Detr``, read from its state dict, and which tensors a whole one has."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from detr.checkpoint.rows import CLASS_KEYS, QUERY_KEY, TRAINING_PREFIX, num_rows
from detr.errors import InputError

# ResNets by the number of blocks in their stages and whether these are bottlenecks
_DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint's tensors do not show; None where it is unknown."""

    dilation: bool | None = None  # DC5: res5 dilated by [1, 2, 2]
    heads: int | None = None  # of attention
    classes: tuple[str, ...] | None = None  # their names; place-holders for some that are not COCO's
    config: str | None = None  # as in ``ModelCard``
    score_threshold: float | None = None  # as in ``ModelCard``

    def or_else(self, other: "CheckpointInfo") -> "CheckpointInfo":
        """This one's values, with those of ``other`` where they are unknown."""
        known = {key: value for key, value in vars(self).items() if value is not None}
        return CheckpointInfo(**{**vars(other), **known})


@dataclass(frozen=True)
class Architecture:
    """The sizes of a DETR on a ResNet."""

    depth: int  # of the ResNet: 18, 34, 50, 101, 152
    blocks: tuple[int, ...]  # of res2 to res5
    channels: tuple[int, ...]  # of res2 to res5
    dilation: bool
    num_classes: int
    num_queries: int
    d: int
    heads: int
    feedforward: int
    encoder_layers: int
    decoder_layers: int
    pre_norm: bool
    learned_positions: bool
    masks: bool


def architecture(state: Mapping[str, Tensor], info: CheckpointInfo) -> Architecture:
    """Reads the sizes off a state dict of a ``Detr``; what ``info`` does not know is by default the original's.

    Raises InputError where the backbone is no ResNet or a part is missing.
    """
    for key in ("class_embed.weight", "query_embed.weight", "input_proj.weight"):
        if key not in state:
            raise InputError(f"{key} is missing: this is not a whole DETR")
    depth = resnet_depth(state)
    blocks = _blocks(state)
    last = "conv3" if _has_bottlenecks(state) else "conv2"
    channels = tuple(state[f"backbone.res{stage}.0.{last}.weight"].shape[0] for stage in (2, 3, 4, 5))
    d = state["input_proj.weight"].shape[0]
    layer = "transformer.encoder.layers.0.linear1.weight"
    return Architecture(
        depth=depth,
        blocks=blocks,
        channels=channels,
        dilation=bool(info.dilation),
        num_classes=num_rows(state) - 1,
        num_queries=len(state["query_embed.weight"]),
        d=d,
        heads=info.heads or 8,
        feedforward=state[layer if layer in state else layer.replace("encoder", "decoder")].shape[0],
        encoder_layers=_count(state, "transformer.encoder.layers."),
        decoder_layers=_count(state, "transformer.decoder.layers."),
        pre_norm="transformer.encoder.norm.weight" in state,
        learned_positions="position_encoding.row_embed.weight" in state,
        masks=any(key.startswith("mask_head.") for key in state),
    )


def config_values(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The config keys that a state dict of a ``Detr`` shows, with their values; fewer where a part is another one."""
    encoder, decoder = "transformer.encoder.layers.", "transformer.decoder.layers."
    values: dict[str, object] = {
        "MODEL.MASK_ON": any(key.startswith("mask_head.") for key in state),
        "MODEL.DETR.ENC_LAYERS": _count(state, encoder),
        "MODEL.DETR.DEC_LAYERS": _count(state, decoder),
        "MODEL.DETR.PRE_NORM": "transformer.encoder.norm.weight" in state,
        "MODEL.DETR.POSITION_EMBEDDING": "learned" if "position_encoding.row_embed.weight" in state else "sine",
    }
    values |= _training_queries(state)
    if num_rows(state):
        values["MODEL.DETR.NUM_CLASSES"] = num_rows(state) - 1
    for key, name in (
        ("NUM_OBJECT_QUERIES", QUERY_KEY),
        ("HIDDEN_DIM", "input_proj.weight"),
        ("DIM_FEEDFORWARD", f"{decoder}0.linear1.weight"),
    ):
        if name in state:
            values[f"MODEL.DETR.{key}"] = len(state[name])
    depth = _DEPTHS.get((_blocks(state), _has_bottlenecks(state)))
    if depth is not None:
        values["MODEL.RESNETS.DEPTH"] = depth
    last = "conv3" if _has_bottlenecks(state) else "conv2"
    for key, name in (("STEM", "backbone.stem.conv1.weight"), ("RES2", f"backbone.res2.0.{last}.weight")):
        if name in state:
            values[f"MODEL.RESNETS.{key}_OUT_CHANNELS"] = len(state[name])
    return values


def _training_queries(state: Mapping[str, Tensor]) -> dict[str, object]:
    anchors, more, groups = f"{TRAINING_PREFIX}anchors", f"{TRAINING_PREFIX}more_queries", 1
    if QUERY_KEY in state:
        rows = len(state[anchors]) if anchors in state else len(state[QUERY_KEY]) + len(state.get(more, ()))
        groups = rows // len(state[QUERY_KEY])
    return {
        "MODEL.DETR.ANCHOR_QUERIES": anchors in state,
        "MODEL.DETR.DENOISING.ENABLED": f"{TRAINING_PREFIX}label_embed.weight" in state,
        "MODEL.DETR.QUERY_GROUPS": groups,
    }


def resnet_depth(state: Mapping[str, Tensor]) -> int:
    """18, 34, 50, 101 or 152. Raises InputError for another backbone."""
    blocks = _blocks(state)
    depth = _DEPTHS.get((blocks, _has_bottlenecks(state)))
    if depth is None:
        raise InputError(f"the backbone is no ResNet that is known here: its stages have {blocks} blocks")
    return depth


def _blocks(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(_count(state, f"backbone.res{stage}.") for stage in (2, 3, 4, 5))


def _has_bottlenecks(state: Mapping[str, Tensor]) -> bool:
    return "backbone.res2.0.conv3.weight" in state


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})


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
