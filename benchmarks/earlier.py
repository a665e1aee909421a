"""This project's code as it was before a change, to be timed beside the code of now."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import Unavailable

ROOT = Path(__file__).resolve().parents[1]
EARLIER = "e010a83"  # the last commit before evaluation in batches, lazy imports and int8


@contextlib.contextmanager
def earlier_code(commit: str = EARLIER) -> Iterator[Path]:
    """A folder with the project of that commit; PYTHONPATH and the working folder choose between it and ``ROOT``.

    Raises Unavailable where git or the commit is missing, as in a clone without history.
    """
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "code.tar"
        try:
            subprocess.run(
                ["git", "archive", "--output", archive, commit], cwd=ROOT, check=True, capture_output=True, text=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "") or str(error)
            raise Unavailable(f"the code of commit {commit} is not here: {' '.join(reason.split())}") from error
        code = Path(folder) / "code"
        code.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", code], check=True)
        yield code
