"""Watches processes that run cases: one that dies or hangs costs its case, and the others go on."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.outcome import REFUSED, RIGHT

# Kind -> its share of all cases
SHARES = {"coco": 7, "panoptic": 3, "images": 5, "configs": 3, "checkpoints": 2}
LIMIT = 300  # seconds for a case, on a machine with other work
START = 1800  # seconds until the first one begins: imports can take long there
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Defect:
    kind: str
    number: int  # of the case
    detail: str


@dataclass
class Result:
    """What the cases of a kind ended in."""

    right: int = 0
    refused: int = 0
    defects: list[Defect] = field(default_factory=list)


def count_cases(total: int, kinds: Sequence[str]) -> dict[str, int]:
    """How many of the cases are of each kind; at least ``total`` together."""
    shares = sum(SHARES[kind] for kind in kinds)
    return {kind: -(-total * SHARES[kind] // shares) for kind in kinds}


def run_kinds(cases: dict[str, int], seed: int, processes: int, only: int | None = None) -> dict[str, Result]:
    """Runs the cases of each kind in a process of its own, so many at a time.

    cases: kind -> how many
    only: the number of a single case, which is printed
    """
    results = {kind: Result() for kind in cases}
    with tempfile.TemporaryDirectory(prefix="detr-fuzz-") as folder:
        waiting = deque(_Watch(kind, count, seed, Path(folder), only) for kind, count in cases.items())
        running: list[_Watch] = []
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    running.append(waiting.popleft())
                    running[-1].start()
                time.sleep(0.05)
                for watch in list(running):
                    if watch.look(results[watch.kind]):
                        running.remove(watch)
        finally:
            for watch in running:
                watch.stop()
    return results


class _Watch:
    """A kind's process, which is started anew behind the case that ended it."""

    def __init__(self, kind: str, cases: int, seed: int, folder: Path, only: int | None) -> None:
        self.kind, self.cases, self.seed, self.only = kind, cases, seed, only
        self.report, self.output = folder / f"{kind}.report", folder / f"{kind}.output"
        self.folder = folder / kind
        self.report.touch()
        self.begun: int | None = None  # the case that runs
        self.next = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.fuzz.worker", self.kind, "--seed", str(self.seed)]
        command += ["--cases", str(self.cases), "--start", str(self.next)]
        command += ["--report", str(self.report), "--folder", str(self.folder)]
        command += ["--only", str(self.only)] * (self.only is not None)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
        output = None if self.only is not None else self.output.open("wb")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
        if output is not None:
            output.close()
        self.position = self.report.stat().st_size
        self.since = time.monotonic()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def look(self, result: Result) -> bool:
        """Adds what has come to the result. Returns whether all cases are done."""
        ended = self.process.poll()
        self._read(result)
        limit = START if self.begun is None else LIMIT
        late = time.monotonic() - self.since > limit
        if ended == 0 and self.begun is None:
            return True
        if ended is None and not late:
            return False
        self.stop()
        reason = f"it took more than {limit} s" if ended is None else f"the process ended with status {ended}"
        if self.begun is None:
            raise RuntimeError(f"{self.kind}: no case began, {reason}: {self._last_words()}")
        result.defects.append(
            Defect(self.kind, self.begun, f"{self.kind} {self.begun}: {reason}; {self._last_words()}")
        )
        self.next, self.begun = self.begun + 1, None
        if self.only is not None:
            return True
        self.start()
        return False

    def _read(self, result: Result) -> None:
        with self.report.open(encoding="utf-8") as file:
            file.seek(self.position)
            while (line := file.readline()).endswith("\n"):
                self.position = file.tell()
                self.since = time.monotonic()
                entry = json.loads(line)
                if "begin" in entry:
                    self.begun = entry["begin"]
                    continue
                self.begun, self.next = None, entry["end"] + 1
                if entry["outcome"] == RIGHT:
                    result.right += 1
                elif entry["outcome"] == REFUSED:
                    result.refused += 1
                else:
                    detail = f"{self.kind} {entry['end']}: {entry['detail']}\n    {entry['case']}"
                    result.defects.append(Defect(self.kind, entry["end"], detail))

    def _last_words(self) -> str:
        lines = self.output.read_text(errors="replace").splitlines() if self.output.exists() else []
        return " | ".join(lines[-15:])[:1500]
