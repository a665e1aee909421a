"""The GPU's table without a GPU: what is said, how contestants are compared, and what the table holds."""

import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu
from benchmarks.timing import Unavailable
from tests.conftest import ROOT

WHERE = {"cpu": "a CPU", "python": "3.12", "versions": {"torch": "2", "torchvision": "0"}, "date": "today"}


@pytest.fixture
def bench():
    return gpu.Bench("cpu", smoke=True, start=time.perf_counter())


def contestant(name, value, **options):
    return gpu.Contestant(name, lambda: lambda: torch.tensor([value]), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(Unavailable, match="torch sees no GPU here"):
        gpu.measure(WHERE, jobs=1, smoke=False)
    command = [sys.executable, "-m", "benchmarks", "gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_who_gives_another_answer_is_not_timed(bench):
    others = [contestant("near", 1.0005), contestant("far", 1.01), contestant("half", 1.01, half=True)]
    bench.run("work", 1, [contestant("ours", 1.0), *others], scores=lambda x: x)
    assert [row.contestant for row in bench.rows] == ["ours", "near", "half"]
    assert any("work, not timed: far gives another answer" in note for note in bench.notes)


def test_nothing_is_compiled_when_time_is_up(bench):
    bench.start -= gpu.BUDGET + 1
    bench.run("work", 1, [contestant("ours", 1.0), contestant("compiled", 1.0, compiled=True)], scores=None)
    assert [row.contestant for row in bench.rows] == ["ours"]
    assert bench.notes == ["work, compiled: left out, 180 s were over"]


def test_the_table():
    row = {"work": "R50, batch 8", "contestant": "ours", "batch": 8, "milliseconds": (19.0, 20.0, 25.0)}
    results = {"device": "H200", "cuda": "13", "notes": ["a note"], **WHERE}
    text = gpu.markdown({**results, "rows": [{**row, "memory": 1234.4, "launches": 321, "copies": None}]})
    line = next(line for line in text.splitlines() if line.startswith("| R50"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["R50, batch 8", "ours", "20.00 (19.00 to 25.00)", "400.0", "1234", "321", "-"]
    assert text.endswith("- a note\n")
