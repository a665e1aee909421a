"""Checkpoint formats met in the wild, and the maps between them: pure functions on dicts of tensors.

``to_detectron2`` and ``from_detectron2`` go from any format to the state dict of a ``Detr`` and back. Every key
of a source is mapped, is left out for a reason that is reported, or is an error that names it.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from detr.checkpoint import names
from detr.checkpoint.architecture import check_class_head
from detr.checkpoint.rows import COCO_ROWS, TRAINING_PREFIX, State, num_rows, to_category_ids, to_contiguous
from detr.errors import InputError


@dataclass(frozen=True)
class Format:
    """What a checkpoint may look like."""

    title: str
    rules: tuple[names.Rule, ...]
    backbone_only: bool = False
    separate_projections: bool = False  # attention's query, key and value each on their own


ORIGINAL = Format("original detection", names.ORIGINAL)
ORIGINAL_MASKS = Format("original with masks", names.ORIGINAL_MASKS)
WRAPPER = Format("Detectron2 wrapper of the authors", names.WRAPPER)
WRAPPER_MASKS = Format("Detectron2 wrapper of the authors, with masks", names.WRAPPER_MASKS)
TORCHVISION = Format("torchvision ResNet (backbone alone)", names.TORCHVISION, backbone_only=True)
TRANSFORMERS_TIMM, TRANSFORMERS_RESNET, TRANSFORMERS_TIMM_MASKS, TRANSFORMERS_RESNET_MASKS = (
    Format(f"transformers {model}, {backbone}", rules, separate_projections=True)
    for model, backbone, rules in (
        ("DetrForObjectDetection", "timm's ResNet", names.TRANSFORMERS_TIMM),
        ("DetrForObjectDetection", "its own ResNet", names.TRANSFORMERS_RESNET),
        ("DetrForSegmentation", "timm's ResNet", names.TRANSFORMERS_TIMM_MASKS),
        ("DetrForSegmentation", "its own ResNet", names.TRANSFORMERS_RESNET_MASKS),
    )
)
TRANSFORMERS = (TRANSFORMERS_TIMM, TRANSFORMERS_RESNET, TRANSFORMERS_TIMM_MASKS, TRANSFORMERS_RESNET_MASKS)
RESNET = Format("Detectron2 ResNet (backbone alone)", names.RESNET, backbone_only=True)
DETECTRON2 = Format("Detectron2, this project", names.DETECTRON2)

# Keys that hold no weight of the model, and why they are left out.
_BATCHES = r".+\.num_batches_tracked"
_LEFT_OUT = {
    _BATCHES: "frozen batch norms count no batches",
    r"(?:criterion|detr\.criterion)\.empty_weight": "the loss takes it from the config",
    r"pixel_(?:mean|std)": "the config has them",
    rf"{re.escape(TRAINING_PREFIX)}.+": "for training alone",
    r"(?:stem\.)?fc\.(?:weight|bias)": "a backbone has no classifier",
}


@dataclass
class Conversion:
    """A state dict and what was done to get it."""

    state: State
    source: Format
    coco: bool  # whether 80 or 133 classes are COCO's, and may be numbered by its ids
    lines: list[str] = field(default_factory=list)  # notes for the user


def recognize(state: Mapping[str, object]) -> Format | None:
    """The format with these keys; None for a state dict that is no DETR and no ResNet."""

    def has(*starts: str) -> bool:
        return any(key.startswith(starts) for key in state)

    prefix = next((p for p in ("", "detr.") if f"{p}class_labels_classifier.weight" in state), None)
    if prefix is not None:
        own = has(f"{prefix}model.backbone.conv_encoder.model.embedder.")
        if prefix:
            return TRANSFORMERS_RESNET_MASKS if own else TRANSFORMERS_TIMM_MASKS
        return TRANSFORMERS_RESNET if own else TRANSFORMERS_TIMM
    if has("detr.detr.backbone.0.backbone."):
        return WRAPPER_MASKS
    if has("detr.backbone.0.backbone."):
        return WRAPPER
    if has("detr.backbone.0.body."):
        return ORIGINAL_MASKS
    if has("backbone.0.body."):
        return ORIGINAL
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return TORCHVISION
    if "stem.conv1.weight" in state and has("res2."):
        return RESNET
    if (
        has("backbone.")
        and not has("backbone.0.backbone.")
        and "query_embed.weight" in state
        and "class_embed.weight" in state
    ):
        return DETECTRON2
    return None


def unknown_keys(keys: Iterable[str], kind: Format) -> list[str]:
    """Those that have no place in a format, not even among the keys that are left out."""
    return [
        key
        for key in keys
        if names.translate(key, kind.rules) is None and not any(re.fullmatch(pattern, key) for pattern in _LEFT_OUT)
    ]


def to_detectron2(state: Mapping[str, Tensor], *, coco: bool = True, keep_ids: bool = False) -> Conversion:
    """The state dict of a ``Detr`` from one in any format.

    coco: whether a class head of 92 or 251 rows counts COCO's category ids, and one of 81 or 134 rows its
        categories; other sizes are not COCO's
    keep_ids: leaves heads of 92 and 251 rows as they are; else they get 81 or 134 rows, in Detectron2's order

    Raises InputError for an unknown format, for keys that no rule maps, for half a class head and for attention
    projections that lack a part.
    """
    source = recognize(state)
    if source is None:
        raise InputError(f"in no format that is known here: the first keys are {', '.join(list(state)[:3])}")
    # Detectron2's backbones may have batch norms that do count.
    any_backbone = source in (DETECTRON2, WRAPPER, WRAPPER_MASKS)
    kept, lines = _without_left_out(state, [_BATCHES] if any_backbone else [])
    unknown = unknown_keys(kept, source)
    if len(unknown) * 10 > len(kept):
        raise InputError(
            f"in no format that is known here: its keys are like those of the kind {source.title}, but {len(unknown)} "
            f"of {len(kept)} are not, the first: {', '.join(unknown[:3])}; is it another architecture?"
        )
    renamed = _renamed(kept, lambda key: names.translate(key, source.rules), f"the kind {source.title}")
    if source.separate_projections:
        renamed = _stack_projections(renamed)
    check_class_head(renamed)
    if any_backbone:
        return Conversion(renamed, source, coco and num_rows(renamed) - 1 in COCO_ROWS.values(), lines)
    contiguous = to_contiguous(renamed) if coco and not keep_ids else renamed
    old, new = num_rows(renamed), num_rows(contiguous)
    if old != new:
        lines.append(f"class rows {old} -> {new}: COCO's category ids, in Detectron2's order")
    return Conversion(contiguous, source, old != new, lines)


def from_detectron2(state: Mapping[str, Tensor], target: Format, *, coco: bool = True) -> Conversion:
    """The inverse of ``to_detectron2``.

    coco: whether a class head of 81 or 134 rows is COCO's. It becomes one of 92 or 251 rows that counts COCO's
        category ids; the rows of ids that COCO does not use never win.

    Raises InputError for keys that have no name in ``target``.
    """
    expanded, lines = to_category_ids(dict(state)) if coco else dict(state), []
    old, new = num_rows(state), num_rows(expanded)
    if old != new:
        lines.append(
            f"class rows {old} -> {new}: COCO's category ids; the {new - old} rows of unused ids never win (weight "
            f"0, bias {expanded['class_embed.bias'].min().item():.0f})"
        )
    if target.separate_projections:
        expanded = _split_projections(expanded)
    what = f"the kind {target.title}, which only has ResNets, and pre-norm only in the original format"
    renamed = _renamed(expanded, lambda key: names.translate(key, target.rules, backwards=True), what)
    return Conversion(renamed, DETECTRON2, coco, lines)


def target_format(state: Mapping[str, Tensor], to: str, *, timm: bool = False) -> Format:
    """The format that ``to`` ("detectron2", "original" or "transformers") means for this state dict of a ``Detr``."""
    masks = any(key.startswith("mask_head.") for key in state)
    if to == "original":
        return ORIGINAL_MASKS if masks else ORIGINAL
    if to == "transformers":
        if timm:
            return TRANSFORMERS_TIMM_MASKS if masks else TRANSFORMERS_TIMM
        return TRANSFORMERS_RESNET_MASKS if masks else TRANSFORMERS_RESNET
    return DETECTRON2


def _without_left_out(state: Mapping[str, Tensor], but: list[str]) -> tuple[State, list[str]]:
    kept, lines = dict(state), []
    for pattern, reason in _LEFT_OUT.items():
        found = [key for key in kept if pattern not in but and re.fullmatch(pattern, key)]
        for key in found:
            del kept[key]
        if found:
            keys = found[0] if len(found) == 1 else f"{len(found)} keys like {found[0]}"
            lines.append(f"left out: {keys} ({reason})")
    return kept, lines


def _renamed(state: State, rename: Callable[[str], str | None], what: str) -> State:
    renamed: State = {}
    unknown = []
    for key, value in state.items():
        new = rename(key)
        if new is None:
            unknown.append(key)
        elif new in renamed:
            raise InputError(f"the key {key} and another key of the checkpoint both map to {new}")
        else:
            renamed[new] = value
    if unknown:
        count = f"{len(unknown)} keys are" if len(unknown) > 1 else "1 key is"
        raise InputError(f"{count} not of {what}; the first: {', '.join(unknown[:3])}")
    return renamed


def _split_projections(state: State) -> State:
    """``in_proj_weight`` (3 d, d) and ``in_proj_bias`` (3 d,) as ``q_proj.weight`` (d, d) and so on."""
    split: State = {}
    for key, value in state.items():
        layer, found, parameter = key.partition("in_proj_")
        if not found:
            split[key] = value
            continue
        for name, part in zip("qkv", value.chunk(3), strict=True):
            split[f"{layer}{name}_proj.{parameter}"] = part.clone()  # a view would be saved with all three
    return split


def _stack_projections(state: State) -> State:
    """The inverse of ``_split_projections``. Raises InputError where one of the three is missing."""
    stacked: State = {}
    for key, value in state.items():
        match = re.fullmatch(r"(.+\.)([qkv])_proj\.(weight|bias)", key)
        if not match:
            stacked[key] = value
            continue
        layer, _, parameter = match.groups()
        new = f"{layer}in_proj_{parameter}"
        if new not in stacked:
            parts = [state.get(f"{layer}{name}_proj.{parameter}") for name in "qkv"]
            if any(part is None for part in parts):
                raise InputError(f"{layer}: of the query, key and value projections ({parameter}) one is missing")
            stacked[new] = torch.cat([part for part in parts if part is not None])
    return stacked
