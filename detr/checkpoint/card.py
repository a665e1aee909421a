"""What a checkpoint says of its model, read and changed without a model."""

import os
from collections.abc import Mapping
from typing import Any

from detr.checkpoint.class_rows import coco_names
from detr.checkpoint.files import load_file, save_file
from detr.checkpoint.hub import ZOO, local_path, parse_zoo_path
from detr.checkpoint.options import split_options
from detr.checkpoint.rows import CLASS_KEYS, QUERY_KEY
from detr.checkpoint.source import NOTE, read
from detr.modeling.card import ModelCard


def read_card(path: str) -> ModelCard | None:
    """The card of the weights in a file, a folder of transformers', a URL or ``detr://NAME``; None if there is none.

    path: as ``DetrCheckpointer.load`` takes it, options included. Released models have COCO's names; those behind
        ``detr://`` are not downloaded for that

    Raises InputError for weights that cannot be had or read.
    """
    path, options = split_options(path)
    if path.startswith(ZOO):
        return ModelCard(coco_names(parse_zoo_path(path).num_classes))
    place = path if os.path.isdir(path) else local_path(path)
    card = read(place, weights=options.weights, is_own=_is_whole).card()
    return None if card == ModelCard() else card


def set_score_threshold(path: str, threshold: float) -> None:
    """Changes the card in a checkpoint of a training; all else in the file stays as it is. Raises InputError."""
    content = load_file(path)
    save_file({**content, NOTE: {**content.get(NOTE, {}), "score_threshold": threshold}}, path)


def _is_whole(state: Mapping[str, Any]) -> bool:
    """Whether a DETR is at the root of a state dict; one inside of it, such as a teacher, is a part of it."""
    return CLASS_KEYS[1] in state and QUERY_KEY in state
