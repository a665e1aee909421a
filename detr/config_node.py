"""A CfgNode that knows which of two competing keys was set last: by a file, the command line or Python.

A schedule is given in iterations, by Detectron2's keys, or in epochs, by ours. Configs inherit one kind and set the
other, and Detectron2's own code reads only its own. So each competing key remembers when it was set, and a key that is
overruled cannot be read by mistake.
"""

import itertools
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode

from detr.errors import InputError

# (section, key in epochs, key in iterations): of each pair, the one set last is in force
SCHEDULE_PAIRS = (
    ("SOLVER", "MAX_EPOCHS", "MAX_ITER"),
    ("SOLVER", "DROP_EPOCHS", "STEPS"),
    ("SOLVER", "CHECKPOINT_EPOCHS", "CHECKPOINT_PERIOD"),
    ("TEST", "EVAL_EPOCHS", "EVAL_PERIOD"),
)
_SECTIONS = ("SOLVER", "TEST")
# Detectron2's keys that cannot be read while the one in epochs is in force. STEPS is only read after MAX_ITER.
_GUARDED = {
    in_iterations: (node, in_epochs) for node, in_epochs, in_iterations in SCHEDULE_PAIRS if in_iterations != "STEPS"
}
_REMEMBERED = {key for _, *pair in SCHEDULE_PAIRS for key in pair} | {"OPTIMIZER"}
_SET_AT = "detr_set_at"  # in a node's __dict__: key -> moment
_clock = itertools.count(1)


class _EqualToCfgNode(type):
    """yacs merges two nodes only where their types are equal."""

    def __eq__(cls, other: object) -> bool:
        return other is CfgNode or other is cls

    def __hash__(cls) -> int:
        return hash(CfgNode)


class DetrCfgNode(CfgNode, metaclass=_EqualToCfgNode):
    """The class of ``cfg``, ``cfg.SOLVER`` and ``cfg.TEST`` once ``add_detr_config`` has been called."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        if key in _REMEMBERED:
            remember(self, key)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        node, in_epochs = _GUARDED.get(name, ("", ""))
        if in_epochs and self.get(in_epochs) and _in_force(self, in_epochs, name) == in_epochs:
            raise InputError(
                f"{node}.{name} is not known, since the schedule is in epochs, {node}.{in_epochs} {self[in_epochs]}: "
                "use detr.engine.trainer.Trainer, which turns epochs into iterations; in a loop of your own call "
                "cfg = detr.engine.solver.schedule_in_iterations(cfg, number_of_training_images) first; or set "
                f"{node}.{name}"
            )
        if name == "MOMENTUM" and was_set(self, "OPTIMIZER") and self["OPTIMIZER"] != "SGD":
            raise InputError(
                f"SOLVER.OPTIMIZER is {self['OPTIMIZER']}, which Detectron2's build_optimizer would ignore: use "
                "detr.engine.trainer.Trainer; in a loop of your own build it with "
                "detr.engine.solver.build_optimizer(cfg, model); or set SOLVER.OPTIMIZER SGD and "
                "SOLVER.CLIP_GRADIENTS.CLIP_TYPE norm, which Detectron2 knows"
            )
        return value

    def merge_from_list(self, cfg_list: list[Any]) -> None:
        """As Detectron2's; a whole number is taken for a float where one is wanted."""
        values = list(cfg_list)
        for index in range(0, len(values) - 1, 2):
            node: Any = self
            for part in values[index].split("."):
                node = node.get(part) if isinstance(node, CfgNode) else None
            if type(node) is float:
                values[index + 1] = _as_float(self._decode_cfg_value(values[index + 1]), node)
        super().merge_from_list(values)

    def merge_from_other_cfg(self, cfg_other: CfgNode) -> None:
        """As Detectron2's; of a whole config, only the keys that were set in it count as set, in their order.

        A whole number is taken for a float where one is wanted.
        """
        _make_floats(cfg_other, self)
        before = {section: dict(self[section].__dict__.get(_SET_AT, {})) for section in _SECTIONS if section in self}
        super().merge_from_other_cfg(cfg_other)
        settings = []
        for section in before:
            if section in cfg_other and _SET_AT in cfg_other[section].__dict__:
                self[section].__dict__[_SET_AT] = before[section]
                moments = cfg_other[section].__dict__[_SET_AT]
                settings += [(moment, section, key) for key, moment in moments.items()]
        for _, section, key in sorted(settings):
            remember(self[section], key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), dict(self), self.__dict__)  # with the moments at which keys were set

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """As fvcore's, which calls it for each base too: keys come in the order in which they were set."""
        content: dict[str, Any] = super().load_yaml_with_base(filename, allow_unsafe=allow_unsafe)
        for section in _SECTIONS:
            if isinstance(content, dict) and isinstance(content.get(section), dict):
                content[section] = _LastSetLast(content[section])
        return content

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """As Detectron2's, without the keys that are overruled: a file does not show which was set last."""
        cfg = self.clone()
        if "SOLVER" in cfg and "TEST" in cfg:
            for section, key in overruled(cfg):
                del cfg[section][key]
        return str(super(DetrCfgNode, cfg).dump(*args, **kwargs))


def _as_float(value: Any, default: Any) -> Any:
    return float(value) if type(value) is int and isinstance(default, float) else value


def _make_floats(node: dict[str, Any], defaults: CfgNode) -> None:
    """In place, and past ``__setitem__``: nobody sets a key here."""
    for key, value in node.items():
        default = defaults.get(key)
        if isinstance(value, CfgNode) and isinstance(default, CfgNode):
            _make_floats(value, default)
        elif (number := _as_float(value, default)) is not value:
            dict.__setitem__(node, key, number)


class _LastSetLast(dict[str, Any]):
    """A dict in the order of the last time that a key was set."""

    def __setitem__(self, key: str, value: Any) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (list(self.items()),)  # yacs copies what it has read, and sets keys while it goes through them


def _restore(cls: type[DetrCfgNode], content: dict[str, Any], attributes: dict[str, Any]) -> DetrCfgNode:
    node: DetrCfgNode = cls.__new__(cls)
    dict.update(node, content)
    node.__dict__.update(attributes)
    return node


def remember(node: CfgNode, key: str) -> None:
    """Counts the key as set now."""
    node.__dict__.setdefault(_SET_AT, {})[key] = next(_clock)


def track(nodes: Iterable[CfgNode]) -> None:
    """Makes the nodes ``DetrCfgNode`` in place; what was set so far counts as a default."""
    for node in nodes:
        object.__setattr__(node, "__class__", DetrCfgNode)  # yacs would take it for a key
        node.__dict__[_SET_AT] = {}


def was_set(node: CfgNode, key: str) -> bool:
    """Whether a file, the command line or Python has set one of the remembered keys since ``add_detr_config``."""
    return _moment(node, key) > 0


def _moment(node: CfgNode, key: str) -> int:
    return int(node.__dict__.get(_SET_AT, {}).get(key, 0))


def _in_force(node: CfgNode, in_epochs: str, in_iterations: str) -> str:
    """The one of two competing keys that was set last; by default that in epochs, which is off while it is 0."""
    return in_iterations if _moment(node, in_iterations) > _moment(node, in_epochs) else in_epochs


def overruled(cfg: CfgNode) -> list[tuple[str, str]]:
    """(section, key) of the schedule's keys that another one, set later, makes meaningless."""
    solver, overruled = cfg.SOLVER, []
    for section, in_epochs, in_iterations in SCHEDULE_PAIRS:
        node = cfg[section]
        # Drops belong to the schedule that they are drops of: one in iterations ends those set before in epochs.
        ended = in_epochs == "DROP_EPOCHS" and _moment(solver, "MAX_ITER") > max(
            _moment(solver, "DROP_EPOCHS"), _moment(solver, "MAX_EPOCHS")
        )
        if ended or _in_force(node, in_epochs, in_iterations) == in_iterations:
            overruled.append((section, in_epochs))
        elif node[in_epochs] or (in_epochs == "DROP_EPOCHS" and solver["MAX_EPOCHS"]):
            overruled.append((section, in_iterations))
    return overruled


def settle_schedule(cfg: CfgNode) -> CfgNode:
    """A copy of ``cfg`` in which overruled keys in epochs are off (0 or ()), and overruled drops in iterations too.

    It is frozen if ``cfg`` is.
    """
    settled = cfg.clone()
    for section, key in overruled(cfg):
        if key in ("DROP_EPOCHS", "STEPS"):
            dict.__setitem__(settled[section], key, ())  # not by __setitem__: nobody sets a key here
        elif key.endswith("_EPOCHS"):
            dict.__setitem__(settled[section], key, 0)
    return settled
