"""What of a model was loaded and what was not, part by part, for the log."""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor

from detr.checkpoint.rows import is_for_training

logger = logging.getLogger(__name__)


def report_keys(own: Mapping[str, Tensor], incompatible: Any, partial: Collection[str]) -> list[str]:
    """Logs how much was loaded; returns a line, which is logged too, for each part that is re-initialized.

    own: the model's tensors
    incompatible: as fvcore's checkpointer reports them
    partial: keys of tensors with rows that were not loaded
    """
    # Where the counters of batch norms are missing, torch sets some and reports others: they are no weights.
    # What is for training alone was reported before.
    own_keys, missing = (
        [key for key in keys if not key.endswith("num_batches_tracked") and not is_for_training(key)]
        for keys in (own, incompatible.missing_keys)
    )
    loaded = set(own_keys).difference(missing, partial)
    logger.info("loaded %d of the model's %d tensors", len(loaded), len(own_keys))
    total, lines = Counter(map(part_of, own_keys)), []
    for part, keys in _by_part(missing).items():
        if len(keys) == total[part]:
            line = f"{part} is re-initialized: the weights hold none of its {len(keys)} tensors"
        else:
            line = f"{part}: {len(keys)} of its {total[part]} tensors are re-initialized: {_few(keys)}"
        logger.warning(line)
        lines.append(line)
    for part, keys in _by_part(incompatible.unexpected_keys).items():
        logger.warning("%s: %d tensors of the weights are not in this model: %s", part, len(keys), _few(keys))
    return lines


def part_of(key: str) -> str:
    """``transformer.decoder``, ``mask_head`` ...: what a user would call the part that a key belongs to."""
    first, _, rest = key.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "transformer" else first


def _by_part(keys: Iterable[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for key in keys:
        parts.setdefault(part_of(key), []).append(key)
    return parts


def _few(keys: list[str]) -> str:
    return ", ".join(keys[:2]) + (" ..." if len(keys) > 2 else "")
