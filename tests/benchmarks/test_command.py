import subprocess
import sys

import pytest

from benchmarks.report import FOLDER
from tests.conftest import ROOT


@pytest.mark.slow
def test_a_part_runs_small_and_leaves_the_results_alone():
    before = {path: path.read_bytes() for path in FOLDER.glob("*.*") if path.is_file()}
    command = [sys.executable, "-m", "benchmarks", "losses", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "losses: ours" in done.stdout
    assert {path: path.read_bytes() for path in FOLDER.glob("*.*") if path.is_file()} == before
