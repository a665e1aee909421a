"""A log file or a thread that meets a full disk: one warning, instead of a traceback for every line."""

import atexit
import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any

from detr.engine.terminal import LOGGERS
from detr.whole_files import disk_error

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def expect_disk_errors() -> Iterator[None]:
    """Around the setup of logging, in each process; what happens inside is seen with the next line of the log."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before
    for name in LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream not in (sys.stdout, sys.stderr):
                handler.handleError = _LogFileError(handler)  # type: ignore[method-assign]
    if not isinstance(threading.excepthook, _ThreadError):
        threading.excepthook = _ThreadError(threading.excepthook)


class _LogFileError:
    """In place of a handler's handleError, which prints a traceback for each line that it cannot write."""

    def __init__(self, handler: logging.StreamHandler[Any]) -> None:
        self._handler = handler

    def __call__(self, record: logging.LogRecord) -> None:
        error = disk_error(sys.exc_info()[1])
        if error is None:
            logging.Handler.handleError(self._handler, record)
            return
        stream = self._handler.stream
        for name in LOGGERS:
            for handler in list(logging.getLogger(name).handlers):
                if getattr(handler, "stream", None) is stream:
                    logging.getLogger(name).removeHandler(handler)
        # What its buffer holds would be an error once more, at the end.
        atexit.unregister(stream.close)
        with contextlib.suppress(OSError):
            stream.close()
        logger.warning("cannot write %s (%s): the log goes on without it", stream.name, error.strerror)


class _ThreadError:
    """In place of threading.excepthook: TensorBoard's thread prints what its next call raises."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __call__(self, args: Any) -> None:
        if disk_error(args.exc_value) is None:
            self._before(args)
