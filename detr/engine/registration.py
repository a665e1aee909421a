"""A user's own data sets, named in the config: DATASETS.REGISTER."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from detr.errors import InputError


def register_datasets(cfg: CfgNode) -> None:
    """Registers what DATASETS.REGISTER names. Raises InputError as ``register_entries`` does."""
    register_entries(cfg.DATASETS.REGISTER)


def register_entries(entries: Sequence[Any]) -> None:
    """Registers data sets, (name, path) or (name, path, split) each, in any format of register_any.

    A second call changes nothing. Raises InputError for another entry, and as register_any does.
    """
    if entries and isinstance(entries[0], str):  # a single one, whose brackets were forgotten
        entries = (entries,)
    for entry in entries:
        if not _is_entry(entry):
            raise InputError(
                f"DATASETS.REGISTER has the entry {entry!r}: it must be (name, path) or (name, path, split), as in "
                "DATASETS.REGISTER \"(('mine_train', 'mine/train.json'),)\""
            )
        # Only here: its readers need packages of their own.
        from detr.data.formats import register_any

        register_any(*entry)


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) in (2, 3) and all(isinstance(x, str) for x in entry)
