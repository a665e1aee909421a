"""Cases that kill their process and that raise an error, to see that these are noticed."""

import os
import signal
from pathlib import Path

from hypothesis import strategies as st

from tests.fuzz.outcome import RIGHT, Kind


def run(case: int, folder: Path) -> str:
    marker = folder.parent / "fatal.begun"  # a process that is started anew goes on counting
    number = int(marker.read_text()) + 1 if marker.exists() else 0
    marker.write_text(str(number))
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 3:
        raise ValueError("a traceback")
    return RIGHT


FATAL = Kind(st.integers(0, 10**6), run)
