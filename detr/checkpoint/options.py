"""Options behind a ``?`` in a path of weights, such as ``model.pth?weights=ema``."""

import os
from dataclasses import dataclass
from urllib.parse import unquote_plus

from detr.errors import InputError

_FLAGS = ("partial", "matching_heuristics")


@dataclass(frozen=True)
class Options:
    """What a path asks for."""

    weights: str | None = None  # "ema", "model", or the name of one of several; None: what the file's program evaluates
    partial: bool = False  # whether weights may fill less than half of a part of the model
    matching_heuristics: bool = False  # Detectron2's: finds names by their ends


def split_options(path: str) -> tuple[str, Options]:
    """The path without its options, and these. Raises InputError for an unknown option or value.

    A URL keeps parameters of its own, byte for byte: a signature holds for nothing else.
    """
    if "?" not in path or os.path.exists(path):
        return path, Options()
    plain, _, query = path.partition("?")
    found, others = {}, []
    for parameter in query.split("&"):
        name, _, value = (unquote_plus(part) for part in parameter.partition("="))
        if (name == "weights" and value) or (name in _FLAGS and value in ("True", "False")):
            found[name] = value
        elif "://" in plain and name not in Options.__dataclass_fields__:
            others.append(parameter)
        elif parameter:
            known = ", ".join(["weights=ema", "weights=model", *(f"{flag}=True" for flag in _FLAGS)])
            raise InputError(f"{path}: {name}={value} behind the ? is no option; there are {known}")
    options = Options(found.get("weights"), **{flag: found.get(flag) == "True" for flag in _FLAGS})
    return plain + ("?" + "&".join(others) if others else ""), options
