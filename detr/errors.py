"""Mistakes that a user can correct, and how scripts report them."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

_CONTROL = re.compile(r"[\0-\x1f\x7f]+")
INTERRUPTED = 130  # a shell's exit status for Ctrl-C
DISK = os.EX_IOERR  # 74, where a file could not be written


class InputError(ValueError):
    """Bad input: a config, a data set, a file.

    Its message names what is wrong, where, and what to do, in one line: line breaks and other control characters, which
    names and values from a file may have, become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_CONTROL.sub(" ", message))


class DiskError(InputError):
    """A disk that is full, fails or cannot be written: no option is wrong, and the same command may do later."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see --help)\n")


@contextlib.contextmanager
def exit_with_one_line(after_interrupt: str = "") -> Iterator[None]:
    """Around a script's work: bad input and diverged training end it with one line and status 2, Ctrl-C with 130.

    A disk that is full or fails ends it with one line and status 74.

    after_interrupt: what to do after Ctrl-C, which follows "interrupted"

    A worker process (data loading, a rank) passes its error on with the traceback of that process in
    the message; what counts is behind the error's name.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted" + (f": {after_interrupt}" if after_interrupt else ""), file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        for kind, status in ((DiskError, DISK), (InputError, 2), (FloatingPointError, 2)):
            _, found, message = text.rpartition(f"{kind.__name__}: ")
            if found:
                print(f"error: {message.strip()}", file=sys.stderr)
                sys.exit(status)
        raise
