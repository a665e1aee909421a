"""Config keys on the command line and in files: ``KEY VALUE`` and ``KEY=VALUE``, and what is wrong with them."""

import ast
import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from detr.errors import InputError

_KEY = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_MISMATCH = re.compile(
    r"Type mismatch \(<class '(?P<wanted>.*)'> vs\. <class '(?P<found>.*)'>\) with values \((?P<default>.*) vs\. "
    r"(?P<value>.*)\) for config key: (?P<key>\S+)"
)
_TYPES = {"int": "a whole number", "float": "a number", "bool": "True or False", "str": "text", "tuple": "a tuple"}


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merges a YAML file with its bases, in place.

    Raises InputError for a file that is missing or no YAML, an unknown key or a wrong value.
    """
    if not PathManager.isfile(path):
        raise InputError(f"the config file {path} does not exist: see configs/ for those that do")
    if os.path.splitext(path)[1] == ".py":
        raise InputError(
            f"{path} is a Python config, and this command reads YAML: name a YAML file, or run Detectron2's "
            "tools/lazyconfig_train_net.py as in docs/detectron2.md"
        )
    _merge(cfg, path, partial(cfg.merge_from_file, path))


def merge_options(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merges ``KEY VALUE`` and ``KEY=VALUE`` in any mixture, in place; of a section, a dict of some of its keys.

    Raises InputError for an unknown key, one without a value, or a wrong value.
    """
    where = "the command line"
    for key, value in option_pairs(cfg, opts):
        for name, part in _expanded(cfg, key, value):
            _merge(cfg, where, partial(cfg.merge_from_list, [name, part]))


def option_pairs(cfg: CfgNode, opts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The keys with their values, of which everything behind the first = is a part. Raises InputError."""
    known, rest = set(_keys(cfg)), iter(opts)
    for opt in rest:
        if opt.startswith("--"):
            raise InputError(f"{opt} stands among the KEY VALUE pairs: options that start with -- go before them")
        key, equals, value = opt.partition("=")
        if not equals:
            following = next(rest, None)
            if following is None or following.startswith("--") or following.partition("=")[0] in known:
                found = "nothing" if following is None else following
                raise InputError(
                    f"the config key {key} has no value: {found} follows; the options at the end must be KEY VALUE or "
                    "KEY=VALUE"
                )
            value = following
        if not _KEY.fullmatch(key):
            raise InputError(
                f"{key!r} stands where a config key should: write KEY VALUE or KEY=VALUE, quoted as needed"
            )
        yield key, value


def _expanded(cfg: CfgNode, key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The key and its value; of a section the single keys in its dict, since yacs would forget all others."""
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if isinstance(node, CfgNode) else None
    if not isinstance(node, CfgNode):
        yield key, value
        return
    try:
        content = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        content = None
    if not isinstance(content, dict):
        example = next(iter(node), "KEY")
        raise InputError(f"{key} is a section of the config, not a key: set one of its keys, as {key}.{example}")
    for name, part in content.items():
        yield from _expanded(cfg, f"{key}.{name}", part)


def _merge(cfg: CfgNode, where: str, merge: Callable[[], None]) -> None:
    try:
        merge()
    except (KeyError, ValueError, AssertionError, AttributeError, OSError, yaml.YAMLError) as error:
        # for an unknown key yacs raises a KeyError or an assertion, depending on where the key stands.
        text = " ".join(str(error.args[0] if isinstance(error, (KeyError, AssertionError)) else error).split())
        unknown = re.match(r"Non-existent (?:config )?key: (\S+)", text)
        if unknown:
            near = difflib.get_close_matches(unknown[1], _keys(cfg), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InputError(f"{where} has the unknown config key {unknown[1]}{hint}") from error
        if mismatch := _MISMATCH.fullmatch(text):
            wanted = _TYPES.get(mismatch["wanted"], mismatch["wanted"].rpartition(".")[2])
            example = (
                f", such as {mismatch['default']}" if mismatch["default"] and len(mismatch["default"]) < 60 else ""
            )
            text = f"{mismatch['key']} is {mismatch['value'] or 'empty'}, and must be {wanted}{example}"
        raise InputError(f"{where} has a key or value that the config cannot take: {text}") from error


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}"]
    return keys
