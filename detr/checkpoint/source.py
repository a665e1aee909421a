"""Reads a checkpoint in any format: checked tensors, their format, and what else the file contains."""

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detr.checkpoint.architecture import CheckpointInfo
from detr.checkpoint.class_rows import coco_names
from detr.checkpoint.coco_categories import coco_categories
from detr.checkpoint.files import load_config_json, load_file, weights_in_folder
from detr.checkpoint.formats import (
    DETECTRON2,
    TRANSFORMERS,
    WRAPPER,
    WRAPPER_MASKS,
    Conversion,
    Format,
    recognize,
    to_detectron2,
)
from detr.checkpoint.hub import ZOO, released_file
from detr.checkpoint.rows import COCO_ROWS
from detr.checkpoint.wrappers import IsOwn, choose, unwrapped_names
from detr.errors import InputError

if TYPE_CHECKING:
    from detr.modeling.card import ModelCard

NOTE = "detr"  # the key under which a file holds what the tensors do not show
_CLASS_BIASES = ("class_embed.bias", "class_labels_classifier.bias")
_DETECTRON2S = (DETECTRON2, WRAPPER, WRAPPER_MASKS)  # whose 80 or 133 classes may be anyone's


@dataclass
class Source:
    """A checkpoint as it was read."""

    path: str  # of the weights file
    state: dict[str, Tensor]
    format: Format | None  # None: no DETR and no ResNet
    info: CheckpointInfo
    rest: dict[str, Any] = field(default_factory=dict)  # what the file holds beside the state dict
    lines: list[str] = field(default_factory=list)  # notes for the user: which weights were taken, what is left out

    def to_detectron2(self, *, own_classes: bool = False, keep_ids: bool = False) -> Conversion:
        """own_classes: 80, 91, 133 or 250 classes are not COCO's; keep_ids: see ``formats.to_detectron2``.

        Raises InputError, with the file's name, where the file is no DETR or has keys without a place.
        """
        try:
            classes = self.info.classes
            coco = not own_classes and (classes is None or classes == coco_names(len(classes)))
            return to_detectron2(self.state, coco=coco, keep_ids=keep_ids)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from error

    def class_names(self) -> tuple[str, ...] | None:
        """Those of the classes that ``to_detectron2`` gives, in their order; None where they are unknown."""
        classes = self.info.classes
        heads = [value for key, value in self.state.items() if key.endswith(_CLASS_BIASES)]
        rows = len(heads[0]) if heads else 0
        coco = coco_names(COCO_ROWS.get(rows, 0))  # of a head that counts COCO's ids
        if classes is None:
            return None if self.format in _DETECTRON2S else coco
        if any(re.fullmatch(r"class \d+", name) for name in classes):  # the converter's place-holders
            return None
        return classes if len(classes) == rows - 1 or classes == coco else None

    def card(self) -> "ModelCard":
        """What the file says of the model."""
        from detr.modeling.card import ModelCard  # not at the top: a conversion needs no models

        return ModelCard(self.class_names(), self.info.config or "", self.info.score_threshold)


def as_note(info: CheckpointInfo) -> dict[str, dict[str, object]]:
    """What is known, as a file's content; ``read`` finds it there."""
    known = {key: list(value) if key == "classes" else value for key, value in vars(info).items() if value is not None}
    return {NOTE: known} if known else {}


def read(path: str, *, unsafe: bool = False, weights: str | None = None, is_own: IsOwn | None = None) -> Source:
    """Reads a weights file, or a folder that transformers wrote.

    unsafe: as in ``load_file``
    weights, is_own: which of several, as in ``wrappers.choose``

    Raises InputError for a file that cannot be read, for weights that are no tensors or not finite, and for a choice
    that is not clear.
    """
    if os.path.isdir(path):
        path = weights_in_folder(path)
    return source_of(path, load_file(path, unsafe=unsafe), weights, is_own)


def source_of(path: str, content: Mapping[str, Any], weights: str | None = None, is_own: IsOwn | None = None) -> Source:
    """What ``read`` makes of a file's content."""
    chosen, lines = choose(path, content, weights, is_own)
    raw: Mapping[Any, Any]
    if chosen is not None:
        key, raw = (chosen.path[0] if chosen.path else None), chosen.state
    else:
        key = next((key for key in ("model", "state_dict") if isinstance(content.get(key), Mapping)), None)
        raw = content if key is None else content[key]
        if all(isinstance(key, str) for key in raw):
            raw = {name: raw[key] for key, name in unwrapped_names(raw).items()}
    rest = {} if key is None else {name: value for name, value in content.items() if name != key}
    state = _checked(path, raw)
    if {"linear_class.weight", "query_pos", "row_embed", "col_embed"} <= state.keys():
        raise InputError(
            f"{path} is of the demo model in the authors' notebook, which is another architecture that no config here "
            f"has: the released weights of DETR itself are {ZOO}detr_R_50 and, by the same names, those of the configs"
        )
    source = recognize(state)
    config = load_config_json(path) if source in TRANSFORMERS else {}
    return Source(path, state, source, _info(path, rest, config), rest, lines)


def _checked(path: str, raw: Mapping[Any, Any]) -> dict[str, Tensor]:
    if not raw:
        raise InputError(f"{path} holds no weights: its state dict is empty")
    state: dict[str, Tensor] = {}
    # DistributedDataParallel puts this before every name.
    prefix = "module." if all(str(key).startswith("module.") for key in raw) else ""
    for key, value in raw.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise InputError(f"{path} holds a {type(value).__name__} under {key!r}, where a tensor belongs")
        state[key.removeprefix(prefix)] = value
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{path} holds NaN or infinity in {len(broken)} of its {len(state)} tensors, the first: "
            f"{', '.join(broken[:3])}; a training that diverged? Take an earlier checkpoint"
        )
    return state


def _info(path: str, rest: Mapping[str, Any], config: Mapping[str, Any]) -> CheckpointInfo:
    released = released_file(path)
    if released is not None:
        return CheckpointInfo(dilation=released.dc5, heads=8)
    args, note = rest.get("args"), rest.get(NOTE)
    if isinstance(note, Mapping):
        return _info_of_note(note)
    if isinstance(args, argparse.Namespace):  # of the authors' training
        return CheckpointInfo(dilation=getattr(args, "dilation", None), heads=getattr(args, "nheads", None))
    if config:
        return _info_of_transformers(path, config)
    return CheckpointInfo()


def _info_of_note(note: Mapping[str, Any]) -> CheckpointInfo:
    classes = note.get("classes")
    named = isinstance(classes, (list, tuple)) and {*map(type, classes)} == {str}
    return CheckpointInfo(
        note.get("dilation"),
        note.get("heads"),
        tuple(classes or ()) if named else None,
        note.get("config"),
        note.get("score_threshold"),
    )


def _info_of_transformers(path: str, config: Mapping[str, Any]) -> CheckpointInfo:
    """Raises InputError for settings that change the function and have no place here."""
    backbone = config.get("backbone_config")
    backbone = backbone if isinstance(backbone, Mapping) else {}
    heads = config.get("encoder_attention_heads", 8)
    here = {
        "model_type": ("detr", config),
        "activation_function": ("relu", config),
        "decoder_attention_heads": (heads, config),
        "num_channels": (3, config),
        "hidden_act": ("relu", backbone),
        "downsample_in_bottleneck": (False, backbone),
    }
    for key, (value, section) in here.items():
        if section.get(key, value) != value:
            raise InputError(
                f"the config.json beside {path} has {key} {section[key]!r}: DETR here only has {value!r}, so that "
                "the weights would mean something else"
            )
    return CheckpointInfo(_dilation(config, backbone), heads, _own_classes(config))


def _dilation(config: Mapping[str, Any], backbone: Mapping[str, Any]) -> bool:
    """transformers has stored it in several places; its own ResNet has no dilation and ignores them."""
    if backbone.get("model_type") == "resnet":
        return False
    options = config.get("backbone_kwargs")
    options = options if isinstance(options, Mapping) else {}
    return bool(config.get("dilation")) or 16 in (backbone.get("output_stride"), options.get("output_stride"))


def _own_classes(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes in id2label; None where they are COCO's at COCO's ids, or no names at all."""
    labels = config.get("id2label")
    if not isinstance(labels, Mapping) or not all(str(key).isdecimal() for key in labels):
        return None
    names = {int(key): str(name) for key, name in labels.items()}
    if all(name == f"LABEL_{key}" for key, name in names.items()):
        return None
    coco = {int(str(category["id"])): category["name"] for category in coco_categories() if category["isthing"]}
    if sum(names.get(key) == name for key, name in coco.items()) > len(coco) / 2:
        return None
    return tuple(name for _, name in sorted(names.items()))
