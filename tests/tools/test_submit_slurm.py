"""tools/submit_slurm.py with submitit's local executor: a job that is preempted goes on to its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import QUICKSTART, ROOT, SHORT, TINY, as_opts

TOOL = ROOT / "tools" / "submit_slurm.py"


def submit(*options):
    """Its status and what it prints, to a pipe that the job, which lives on, must not hold."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TOOL), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    return done.returncode, done.stdout + done.stderr


def wait_for(condition):
    end = time.monotonic() + 300
    while not (result := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return result


@pytest.mark.slow
def test_a_preempted_job_saves_and_goes_on_to_its_end(shapes_root, tmp_path):
    run = tmp_path / "run"
    settings = {**TINY, **SHORT, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.MAX_ITER": 45, "DATALOADER.NUM_WORKERS": 0,
                "OUTPUT_DIR": run}  # fmt: skip
    arguments = ["--config-file", str(QUICKSTART), *as_opts(settings)]
    status, text = submit("--cluster", "local", "--processes", "2", "--", *arguments)
    assert status == 0, text
    job = int(text[text.index("job ") :].split()[1])
    assert f"kill -INT {job} ends it, saved" in text
    wait_for(lambda: (run / "metrics.json").is_file() and (run / "metrics.json").read_text())  # 20 steps
    (task,) = Path(f"/proc/{job}/task/{job}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)  # as Slurm before it takes the machine
    wait_for((run / "slurm" / f"{job}_0_result.pkl").is_file)
    text = (run / "slurm" / f"{job}_0_log.err").read_text()
    saved = text.split("stopped by SIGTERM: ")[1].split(" is saved")[0]
    printed = " ".join((run / "slurm" / f"{job}_0_log.out").read_text().split())  # long lines are folded
    assert f"{saved}, with optimizer and schedule" in printed
    assert (run / "last_checkpoint").read_text() == "model_final.pth"
    status, text = submit("--cluster", "local", "--", *arguments)
    assert status == 2
    assert f"OUTPUT_DIR {run} holds the checkpoints of an earlier training" in text
