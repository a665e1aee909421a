"""What a state dict of a ``Detr`` tells of the model behind it, and what it does not."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from detr.checkpoint.rows import num_rows
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
class Facts:
    """What the tensors do not tell; None where nothing else told it either."""

    dilation: bool | None = None  # DC5: res5 dilated by [1, 2, 2]
    heads: int | None = None  # of attention
    classes: tuple[str, ...] | None = None  # their names, where they are not COCO's

    def or_else(self, other: "Facts") -> "Facts":
        """What this one knows, else what ``other`` does."""
        known = {key: value for key, value in vars(self).items() if value is not None}
        return Facts(**{**vars(other), **known})


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


def architecture(state: Mapping[str, Tensor], facts: Facts) -> Architecture:
    """Reads the sizes off a state dict of a ``Detr``; what only ``facts`` could tell is by default the original's.

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
        dilation=bool(facts.dilation),
        num_classes=num_rows(state) - 1,
        num_queries=len(state["query_embed.weight"]),
        d=d,
        heads=facts.heads or 8,
        feedforward=state[layer if layer in state else layer.replace("encoder", "decoder")].shape[0],
        encoder_layers=_count(state, "transformer.encoder.layers."),
        decoder_layers=_count(state, "transformer.decoder.layers."),
        pre_norm="transformer.encoder.norm.weight" in state,
        learned_positions="position_encoding.row_embed.weight" in state,
        masks=any(key.startswith("mask_head.") for key in state),
    )


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
