"""What a case may end in: a right result, or one clear line. Everything else is a defect."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis.strategies import SearchStrategy

RIGHT, REFUSED, DEFECT = "right", "refused", "defect"
LONGEST = 1200  # characters of a message, paths included


class Kind(NamedTuple):
    """
    cases: what is tried
    run: a case and an empty folder -> RIGHT or REFUSED; any exception is a defect
    """

    cases: SearchStrategy[Any]
    run: Any


def check_line(error: Exception, *names: str) -> str:
    """Returns REFUSED if the error is one line of bearable length that has one of the names, if there are any."""
    text = str(error)
    assert text.strip(), "an empty message"
    assert "\n" not in text, f"a message of several lines: {text!r}"
    assert len(text) <= LONGEST, f"a message of {len(text)} characters: {text[:200]}"
    assert text.isprintable(), f"a message with control characters: {text!r}"
    assert not names or any(name in text for name in names), f"a message without {names}: {text}"
    return REFUSED


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """The messages of the warnings that detr logs inside."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("detr")
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)


def empty_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
