"""Whether weights belong to a model: by their shapes, and by how much of each part of the model they fill."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from detr.checkpoint.architecture import config_values, missing_keys
from detr.checkpoint.rows import TRAINING_PREFIX
from detr.errors import InputError

_DECODER = "transformer.decoder.norm.weight"
_ENCODER_NORM = "transformer.encoder.norm.weight"  # only in the pre-norm variant
_RESIZED = ("MODEL.DETR.NUM_CLASSES", "MODEL.DETR.NUM_OBJECT_QUERIES")  # other numbers of rows are no mistake
_BACKBONE_KEYS = "MODEL.RESNETS."
# Keys that weights need not have in common with the config.
_FREE = ("MODEL.MASK_ON", "MODEL.DETR.ANCHOR_QUERIES", "MODEL.DETR.DENOISING.ENABLED", "MODEL.DETR.QUERY_GROUPS")


def check_weights_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, known: bool, partial: bool) -> None:
    """Raises InputError for weights of another model, and names the config keys where these would make it theirs.

    state: the weights, with the model's names and numbers of rows; own: the model's tensors
    known: whether the weights are in a known format; else more than half of them must be in the model
    partial: whether the weights may fill a part of the model, such as ``backbone.res4``, by less than a half
    """
    common = state.keys() & own.keys()
    if not common or (not known and len(common) * 2 <= len(state)):
        what = "nothing" if not common else f"only {len(common)} of their {len(state)} tensors"
        first = [key for key in state if key not in own][:3]
        raise InputError(
            f"the weights are in no format that is known here and hold {what} for this model: their first keys "
            f"{'are' if not common else 'that it does not have are'} {', '.join(first)}; is it a checkpoint of another "
            "architecture or program?"
        )
    if _DECODER in state and (_ENCODER_NORM in state) != (_ENCODER_NORM in own):
        kind = "pre" if _ENCODER_NORM in state else "post"
        raise InputError(
            f"the weights are of a {kind}-norm transformer and the model is the other: results would mean nothing; "
            f"{_remedy(state, own)}"
        )
    wrong = [key for key in state if key in own and state[key].shape != own[key].shape]
    if wrong:
        key = wrong[0]
        raise InputError(
            f"{len(wrong)} tensors of the weights have other shapes than the model's, the first: {key}, "
            f"{tuple(state[key].shape)} in the weights and {tuple(own[key].shape)} here; {_remedy(state, own, wrong)}"
        )
    if not partial:
        _check_parts(state, own)


def _check_parts(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    totals, held = Counter(map(_filled_part, own)), Counter(_filled_part(key) for key in state if key in own)
    for part, total in totals.items():
        if part == TRAINING_PREFIX.rstrip("."):
            continue  # any share of it will do
        others = [key for key in state if key not in own and _filled_part(key) == part]
        is_renamed = not held[part] and part.startswith("transformer.") and _are_renamed(part, others, state, own)
        if (held[part] and held[part] * 2 < total) or is_renamed:
            names = f" (and {len(others)} others, the first: {others[0]})" if others else ""
            raise InputError(
                f"the weights hold {held[part]} of the {total} tensors of {part}{names}, so that they are another "
                f"model's; {_remedy(state, own)}, or add ?partial=True to their path to train the rest of it anew"
            )


def _are_renamed(part: str, others: list[str], state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether the others are a part's tensors under another program's names, by their shapes; perhaps more or fewer."""
    ours = Counter(tuple(value.shape) for key, value in own.items() if _filled_part(key) == part)
    theirs = Counter(tuple(state[key].shape) for key in others)
    return bool(theirs) and (theirs <= ours or ours <= theirs)


def _remedy(state: Mapping[str, Any], own: Mapping[str, Any], wrong: Iterable[str] = ()) -> str:
    """The keys to set, where the weights then are a whole model's; else no keys, which would only lead astray.

    wrong: tensors of other shapes, which the keys must explain
    """
    values, own_values = config_values(state), config_values(own)
    parts = {key.partition(".")[0] for key in state}
    settings = {
        key: value
        for key, value in values.items()
        if key in own_values and value != own_values[key] and key not in _RESIZED and _is_shown(key, parts)
    }
    whole = not any(key.partition(".")[0] in parts for key in missing_keys(state))
    if settings and whole and all(_explains(settings, name) for name in wrong):
        return f"set {' '.join(f'{key} {value}' for key, value in settings.items())}"
    return "name weights that belong to this config"


def _explains(settings: Iterable[str], name: str) -> bool:
    """Whether one of the keys decides the shape of a tensor."""
    if name.startswith(("input_proj.", "mask_head.")):  # between backbone and transformer
        return True
    return any(key.startswith(_BACKBONE_KEYS) == name.startswith("backbone.") for key in settings)


def _is_shown(key: str, parts: set[str]) -> bool:
    """Whether weights with these parts show a key's value: a backbone alone shows nothing of the transformer."""
    if key.startswith(_BACKBONE_KEYS):
        return "backbone" in parts
    return key not in _FREE and "transformer" in parts


def _filled_part(key: str) -> str:
    """``backbone.res4``, ``transformer.decoder``, ``mask_head`` ...: what is either filled by weights or not."""
    found = re.match(r"backbone\.(?:bottom_up\.)?\w+|transformer\.\w+|\w+", key)
    return found[0] if found else key
