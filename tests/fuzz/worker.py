"""Runs cases of one kind, one after the other, and writes down which one begins and what it ends in.

A process of its own: what kills or stops it is the fault of the case that it wrote down last.
"""

import argparse
import importlib
import json
import logging
import os
import resource
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

ADDRESS_SPACE = 4 << 30  # bytes that a process may map beside what it has when it begins
GROWTH = 1 << 30  # bytes in memory that a case may need at most


def main(options: argparse.Namespace) -> None:
    import hypothesis
    from hypothesis import HealthCheck, Phase, given, settings

    from tests.fuzz.outcome import DEFECT, Kind, empty_folder

    logging.disable(logging.INFO)
    # What numpy says of NaN, say; a large photo that PIL reads is none.
    warnings.simplefilter("error", RuntimeWarning)
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    kind: Kind = getattr(importlib.import_module(f"tests.fuzz.{options.kind}"), options.kind.upper())
    mapped = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (mapped + ADDRESS_SPACE, resource.RLIM_INFINITY))
    report = open(options.report, "a", buffering=1, encoding="utf-8")  # noqa: SIM115
    folder = Path(options.folder)
    number = -1

    @hypothesis.seed(options.seed)
    @settings(
        max_examples=options.cases,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases)
    def run(case: Any) -> None:
        nonlocal number
        number += 1
        if number < options.start or (options.only is not None and number != options.only):
            return
        report.write(json.dumps({"begin": number}) + "\n")
        if options.only is not None:
            print(f"case {number} of {options.kind}, seed {options.seed}:\n{case!r}", flush=True)
        before = _reset_peak()
        detail = ""
        try:
            outcome = kind.run(case, empty_folder(folder))
            grown = _status("VmHWM") - before
            assert grown < GROWTH, f"it needed {grown >> 20} MB"
        except Exception as error:
            outcome = DEFECT
            detail = f"{type(error).__name__}: {error}"
            if options.only is not None:
                traceback.print_exc()
        report.write(json.dumps({"end": number, "outcome": outcome, "detail": detail[:500], "case": repr(case)[:3000]
                                 if detail else ""}) + "\n")  # fmt: skip

    run()


def _status(key: str) -> int:
    """A size of this process in bytes: mapped (VmSize), in memory (VmRSS), and the most that was in memory (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _reset_peak() -> int:
    """Forgets the peak so far. Returns the bytes in memory."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return _status("VmHWM")  # what the kernel does not forget; then only new peaks count
    return _status("VmRSS")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind")
    for name in ("seed", "cases", "start", "only"):
        parser.add_argument(f"--{name}", type=int, default=0 if name == "start" else None)
    parser.add_argument("--report", default="/dev/null")
    parser.add_argument("--folder")
    arguments = parser.parse_args()
    # Before torch and detr are imported, which read them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="detr-fuzz-") as scratch:
        os.environ["DETECTRON2_DATASETS"] = scratch
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = scratch
        arguments.folder = arguments.folder or os.path.join(scratch, "case")
        main(arguments)
        sys.stdout.flush()
