"""What our commands show on the terminal: a few lines of their own, and warnings. All else is in OUTPUT_DIR/log.txt."""

import contextlib
import io
import logging
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence

from detectron2.utils import comm
from tqdm import tqdm

LOGGERS = ("detectron2", "fvcore", "detr")  # those that Detectron2's default_setup and ours write to log.txt
WIDTH = 110  # characters of a line, and those of a label before it
LABEL = 10
LONGEST = 400  # characters of a warning of another package; some list every tensor of a model

# Beginnings of messages that say again what the terminal has: the error itself, or a warning with the value to set.
_REPEATED = ("Exception during training", "SOLVER.STEPS contains values larger")
_COLORS = re.compile(r"\x1b\[[\d;]*m")


class TerminalHandler(logging.Handler):
    """Warnings and errors on stderr, one line each, above the progress bar where there is one."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(_COLORS.sub("", record.getMessage()).split())
        if text.startswith(_REPEATED):
            return
        # Of a Detr the start screen says what is re-initialized.
        if record.name.startswith("detr.checkpoint.") and "re-initialized" in text:
            return
        if not record.name.startswith("detr."):
            text = textwrap.shorten(text, LONGEST, placeholder=" ... (the rest is in log.txt)")
        kind = "error" if record.levelno >= logging.ERROR else "warning"
        tqdm.write(f"{kind}: {text}", file=sys.stderr)


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Inside, Detectron2's logging is set up; it then writes to files only, and the terminal gets warnings."""
    with contextlib.redirect_stdout(io.StringIO()) as unseen:
        yield
    # Of Detectron2's anchors. Only here, since a script of one's own may call torch.meshgrid like this itself.
    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    for logger in map(logging.getLogger, LOGGERS):
        for handler in list(logger.handlers):
            if getattr(handler, "stream", None) is unseen or isinstance(handler, TerminalHandler):
                logger.removeHandler(handler)
        if comm.is_main_process():
            logger.addHandler(TerminalHandler())


def is_quiet() -> bool:
    """Whether ``setup`` has taken Detectron2's log off the terminal, and this process is the one that shows things."""
    return any(isinstance(handler, TerminalHandler) for handler in logging.getLogger("detr").handlers)


def end_quiet() -> None:
    """Leaves the terminal to Detectron2's log, where an earlier ``setup`` in this process had taken it off."""
    for logger in map(logging.getLogger, LOGGERS):
        for handler in list(logger.handlers):
            if isinstance(handler, TerminalHandler):
                logger.removeHandler(handler)


def show(text: str) -> None:
    """Prints on stdout, above a progress bar, where the terminal is quiet; else nothing, since the log has it all."""
    if is_quiet():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def show_section(label: str, lines: Sequence[str]) -> None:
    """Shows lines with a label before the first one; long ones are folded."""
    indent = " " * LABEL
    folded = [
        textwrap.fill(line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)
        for line in lines
    ]
    if folded:
        show("\n".join(folded).replace(indent, label.ljust(LABEL), 1))


def format_seconds(seconds: float) -> str:
    """40 s, 6 min, 3.5 h or 2.1 days."""
    for size, unit, digits in ((86400, "days", 1), (3600, "h", 1), (60, "min", 0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def few(names: Sequence[str], width: int = 90) -> str:
    """Names in one line of about ``width`` characters; of the rest only their number."""
    shown, length = 0, 0
    for name in names:
        length += len(name) + 2
        if length > width and shown:
            break
        shown += 1
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest else "")
