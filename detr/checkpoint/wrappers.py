"""Finds the weights in a checkpoint's content by their structure, however they are wrapped.

A training stores weights beside other things, in nested dicts, behind a prefix such as ``module.`` or ``model.``,
often with an average of them (EMA). Each place where the keys are those of a whole DETR is a candidate.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from detr.checkpoint.formats import Format, recognize, unknown_keys
from detr.errors import InputError

IsOwn = Callable[[Mapping[str, Any]], bool]  # whether a dict, with names without wrappers, is the model's as it is

_DEPTH = 4  # of nested dicts
_ANCHORS = ("class_embed.bias", "class_labels_classifier.bias")  # every whole DETR has one of them
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_AVERAGE = {"ema", "swa", "avg", "average", "averaged", "averaging", "shadow"}  # words in a name


@dataclass(frozen=True)
class Candidate:
    """A state dict in a checkpoint's content."""

    path: tuple[str, ...]  # the keys of the nested dicts
    prefix: str  # before every name
    state: dict[str, Any]  # without prefix and wrappers
    keys: frozenset[str]  # of the dict, that these are
    beside: frozenset[str]  # the dict's other keys
    average: bool

    @property
    def name(self) -> str:
        """As a user names it."""
        return ".".join([*self.path, *self.prefix.split(".")[:-1]]) or "top-level"


def choose(
    where: str, content: Mapping[str, Any], weights: str | None, is_own: IsOwn | None = None
) -> tuple[Candidate | None, list[str]]:
    """The weights to take, None where the content is in no known format, and lines for the log.

    where: for messages
    weights: "ema", "model" or a candidate's name; None for what the file's program evaluates, the average if it has one
    is_own: a dict for which this holds is taken whole, with every DETR inside; else the outermost of them is taken

    Raises InputError where the choice is not there or not clear.
    """
    found = _candidates(content, is_own)
    if is_own and not _fitting(found, weights):  # perhaps a DETR inside is named
        found = _candidates(content)
    if not found:
        if weights not in (None, "model"):
            raise InputError(f"{where}: weights={weights} cannot be chosen, because no part of it is in a known format")
        return None, []
    names = ", ".join(candidate.name for candidate in found)
    fitting = _fitting(found, weights)
    if not fitting:
        what = "EMA" if weights == "ema" else f"weights {weights!r}"
        raise InputError(f"{where} has no {what}: it holds {names}; name one of these, or leave weights={weights} out")
    if len(fitting) > 1:
        raise InputError(
            f"{where} holds several models, {names}, and it is not clear which one is meant: name it behind the path, "
            f"as in ?weights={fitting[-1].name}"
        )
    (chosen,) = fitting
    lines = []
    if len(found) > 1:
        kind = "the average (EMA)" if chosen.average else "no average"
        roles = [role for role in ("ema", "model") if len(_fitting(found, role)) == 1]
        unlike = [role for role in roles if _fitting(found, role) != [chosen]] or [
            part.name for part in found if part is not chosen
        ]
        others = " or ".join(f"?weights={name}" for name in unlike)
        lines.append(f"the file holds {names}: {chosen.name} is taken, {kind}; {others} behind the path takes another")
    elsewhere = {key for other in found if other.path == chosen.path and other is not chosen for key in other.keys}
    if beside := sorted(set(chosen.beside) - elsewhere):
        first = beside[0] if len(beside) == 1 else f"{len(beside)} keys like {beside[0]}"
        lines.append(f"left out: {first} (beside the weights)")
    return chosen, lines


def _fitting(found: list[Candidate], weights: str | None) -> list[Candidate]:
    averages, others = (_outermost([part for part in found if part.average is wanted]) for wanted in (True, False))
    if weights is None:
        return averages or others
    by_role = {"ema": averages, "model": others}.get(weights, [])
    by_name = [part for part in found if part.name == weights]
    by_name = by_name or [part for part in found if part.prefix == f"{weights}."]
    return by_name if by_name and len(by_role) != 1 else by_role


def _outermost(found: list[Candidate]) -> list[Candidate]:
    """Without those inside another one, such as a teacher in its student."""
    return [
        part
        for part in found
        if not any(part.path == o.path and part.prefix.startswith(o.prefix) and part is not o for o in found)
    ]


def unwrapped_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without the names of modules that torch wraps around others, such as ``_orig_mod``.

    Such a name starts with an underscore, and its module is the only part of the one around it.
    """
    split = {key: key.split(".") for key in keys}
    children: dict[tuple[str, ...], set[str]] = {}
    for parts in split.values():
        for i, part in enumerate(parts):
            children.setdefault(tuple(parts[:i]), set()).add(part)

    def is_wrapper(parts: list[str], i: int) -> bool:
        return i < len(parts) - 1 and parts[i].startswith("_") and len(children[tuple(parts[:i])]) == 1

    names = {
        key: ".".join(part for i, part in enumerate(parts) if not is_wrapper(parts, i)) for key, parts in split.items()
    }
    return names if len(set(names.values())) == len(names) else {key: key for key in names}


def _candidates(content: Mapping[Any, Any], is_own: IsOwn | None = None) -> list[Candidate]:
    """Those of whole DETRs; where there is none, those that are a backbone and nothing else."""
    # mmengine swaps the weights and their average before it saves, so that the names say the opposite.
    swapped = "message_hub" in content and "ema_state_dict" in content
    dicts = [
        (path, state, {name: key for key, name in unwrapped_names(state).items()}) for path, state in _dicts(content)
    ]
    for parts_of in (_detrs, _backbone):
        found = []
        for path, state, names in dicts:
            whole = is_own is not None and is_own({name: state[key] for name, key in names.items()})
            for prefix, part in [("", names)] if whole else parts_of(names):
                keys = frozenset(part.values())
                beside = frozenset(state.keys() - keys)
                words = {word.lower() for name in (*path, prefix) for word in _WORD.findall(name)}
                average = bool(words & _AVERAGE) or "n_averaged" in beside  # torch's AveragedModel counts so
                if swapped and path and path[0] in ("state_dict", "ema_state_dict"):
                    average = path[0] == "state_dict"
                weights = {name: state[key] for name, key in part.items()}
                found.append(Candidate(path, prefix, weights, keys, beside, average))
        if found:
            return found
    return []


def _dicts(content: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The nested dicts that hold tensors by name, except those of optimizers."""
    if {"state", "param_groups"} <= content.keys():
        return
    if any(isinstance(key, str) and isinstance(value, (Tensor, np.ndarray)) for key, value in content.items()):
        yield path, {key: value for key, value in content.items() if isinstance(key, str)}
    for key, value in content.items():
        if isinstance(value, Mapping) and len(path) < _DEPTH:
            yield from _dicts(value, (*path, str(key)))


def _detrs(names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """(prefix, {name behind it: key}) of each whole DETR in a dict; the shortest prefix that makes it one.

    names: name without wrappers -> key
    """
    left = dict(names)
    prefixes = sorted({prefix for name in left for prefix in _prefixes(name)}, key=lambda prefix: (len(prefix), prefix))
    for prefix in prefixes:
        part = _behind(prefix, left)
        if (kind := _detr_format(part)) is None:
            continue
        for inner in (other.removeprefix(prefix) for other in prefixes if other.startswith(prefix) and other != prefix):
            outer = {name: key for name, key in part.items() if not name.startswith(inner)}
            if _detr_format(_behind(inner, part)) is None:
                continue
            if _detr_format(outer):  # two of them: the inner one's turn comes later
                part = outer
            elif outer and outer.keys() <= set(unknown_keys(part, kind)):  # all around the inner one is not of a DETR
                prefix, part = prefix + inner, _behind(inner, part)
                break
        taken = set(part.values())
        left = {name: key for name, key in left.items() if key not in taken}
        yield prefix, part


def _prefixes(name: str) -> list[str]:
    """Of a name that ends in an anchor, what may be a prefix: "", "a.", "a.b." ..."""
    anchor = next((anchor for anchor in _ANCHORS if f".{name}".endswith(f".{anchor}")), None)
    if anchor is None:
        return []
    parts = name.removesuffix(anchor).split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def _detr_format(names: Iterable[str]) -> Format | None:
    found = recognize(dict.fromkeys(names))
    return None if found is None or found.backbone_only else found


def _behind(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(prefix): key for name, key in names.items() if name.startswith(prefix)}


def _backbone(names: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """The same for a dict that is a backbone alone, behind a prefix of all its names."""
    prefix, part = "", dict(names)
    while part:
        found = recognize(part)
        if found is not None and found.backbone_only:
            yield prefix, part
            return
        first = f"{next(iter(part)).partition('.')[0]}."
        if not all(name.startswith(first) for name in part):
            return
        prefix, part = prefix + first, _behind(first, part)
