"""What a run's config says of its model: the size of the model, and the keys that differ from the defaults."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.config import get_cfg

from detr.analysis import Analysis, analyze
from detr.config import add_detr_config
from detr.engine.defaults import load_config
from detr.errors import InputError

LENGTH = 200  # letters of a value, before it is cut off


@dataclass(frozen=True)
class Change:
    """A config key, its value, and its default: "" where Detectron2 and we have no such key."""

    key: str
    value: str
    default: str


@dataclass(frozen=True)
class Summary:
    """
    analysis: of the model at ``size``, (height, width) in pixels; None where ``problem`` says why there is none
    changes: the config keys that differ from their defaults, in the order of the alphabet
    """

    analysis: Analysis | None
    size: tuple[int, int]
    problem: str
    changes: tuple[Change, ...]


def summarize(config: Mapping[str, Any], config_file: str) -> Summary:
    """config: as of a ``Run``; config_file: the same as a file

    A run may have no config, or one of Detectron2's LazyConfigs, which has other keys.
    """
    if "MODEL" not in config:
        return Summary(None, (0, 0), "its config has no MODEL" if config else "the folder has no config", ())
    side, longest = config["INPUT"]["MIN_SIZE_TEST"], config["INPUT"]["MAX_SIZE_TEST"]
    side = side or longest  # 0: images keep their size
    size = (min(side, longest), min(side * 4 // 3, longest))
    try:
        analysis, problem = analyze(load_config(config_file, []), size=size), ""
    except InputError as error:
        analysis, problem = None, str(error)
    return Summary(analysis, size, problem, tuple(_changes(config)))


def _changes(config: Mapping[str, Any]) -> Iterator[Change]:
    cfg = get_cfg()
    add_detr_config(cfg)
    defaults, values = _flatten(cfg), _flatten(config)
    for key in sorted(values):
        value, default = values[key], defaults.get(key)
        # A YAML file has lists where the defaults have tuples.
        if _plain(value) != _plain(default):
            yield Change(key, _shorten(value), _shorten(default) if key in defaults else "")


def _flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"MODEL": {"DEVICE": "cpu"}} -> {"MODEL.DEVICE": "cpu"}"""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _plain(value: Any) -> Any:
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) and value else repr(_plain(value))
    return text if len(text) <= LENGTH else f"{text[:LENGTH]} ..."
