"""State-dict maps between checkpoint formats: pure functions on dicts of tensors.

    K  classes without no-object, whose row is the last of the class head

Every key of a source is mapped, or is an error that names it.
"""

import re
from collections.abc import Callable, Mapping

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor

from detr.errors import InputError

State = dict[str, Tensor]

ORIGINAL_COCO_ROWS = 92  # COCO ids 0..90 as they are, most gaps included, then no-object

_UNCHANGED = r"(transformer|input_proj|query_embed|class_embed|bbox_embed)\..+"
_RESIDUAL = r"backbone\.0\.body\.layer(\d)\.(\d+)\.(.+)"
_STEM = r"backbone\.0\.body\.(.+)"
_POSITION = r"backbone\.1\.((?:row|col)_embed\.weight)"


def is_original_detection(state: Mapping[str, object]) -> bool:
    """Whether the keys are those of the authors' detection models."""
    return "transformer.encoder.layers.0.self_attn.in_proj_weight" in state and any(
        key.startswith("backbone.0.body.") for key in state
    )


def original_to_detectron2(state: Mapping[str, Tensor]) -> State:
    """An original detection model as a state dict of ``Detr``.

    A class head of 92 rows (COCO ids) keeps the 80 categories in Detectron2's order and no-object: 81
    rows. Other sizes are kept. Raises InputError for keys that no rule maps, naming the first ones.
    """
    return select_coco_rows(_renamed(state, _original_key, "an original DETR detection model"))


def is_torchvision_resnet(state: Mapping[str, object]) -> bool:
    """Whether the keys are those of a ResNet of torchvision's, with its classifier or without."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def torchvision_to_detectron2(state: Mapping[str, Tensor]) -> State:
    """A torchvision ResNet as the backbone of a ``Detr``; its classifier and batch counters have no place there.

    Raises InputError for keys that no rule maps, naming the first ones.
    """
    # Frozen batch norms count no batches.
    body = {k: v for k, v in state.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}
    return _renamed(body, lambda key: _original_key(f"backbone.0.body.{key}"), "a torchvision ResNet")


def select_coco_rows(state: State) -> State:
    """92 class rows -> 81; a state dict with another number of rows is returned as it is."""
    if state["class_embed.bias"].shape[0] != ORIGINAL_COCO_ROWS:
        return state
    rows = coco_rows()
    return state | {key: state[key][rows] for key in ("class_embed.weight", "class_embed.bias")}


def coco_rows() -> Tensor:
    """The rows of the original's 92 that Detectron2's 80 categories and no-object are: (81,) int64."""
    things = [int(str(category["id"])) for category in COCO_CATEGORIES if category["isthing"]]
    return torch.tensor([*things, ORIGINAL_COCO_ROWS - 1])


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str | None], what: str) -> State:
    names = {key: rename(key) for key in state}
    unknown = [key for key, new in names.items() if new is None]
    if unknown:
        raise InputError(f"{len(unknown)} keys are not those of {what}, the first: {', '.join(unknown[:3])}")
    return {str(names[key]): value for key, value in state.items()}


def _original_key(key: str) -> str | None:
    """The name that ``Detr`` has for a parameter of the original; None where there is none."""
    if re.fullmatch(_UNCHANGED, key):
        return key
    if match := re.fullmatch(_POSITION, key):
        return f"position_encoding.{match[1]}"
    if match := re.fullmatch(_RESIDUAL, key):
        stage, block, rest = match.groups()
        rest = _torchvision_layer(rest)
        return rest and f"backbone.res{int(stage) + 1}.{block}.{rest}"
    if match := re.fullmatch(_STEM, key):
        rest = _torchvision_layer(match[1])
        return rest and f"backbone.stem.{rest}"
    return None


def _torchvision_layer(name: str) -> str | None:
    """``conv1.weight``, ``bn1.bias``, ``downsample.0.weight`` ... in Detectron2's naming."""
    layer, _, parameter = name.rpartition(".")
    if layer.startswith("conv"):
        return name
    if parameter == "num_batches_tracked":
        return None
    if layer.startswith("bn"):
        return f"conv{layer[2:]}.norm.{parameter}"
    return {"downsample.0": f"shortcut.{parameter}", "downsample.1": f"shortcut.norm.{parameter}"}.get(layer)
