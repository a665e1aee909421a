"""Starting, failing and stopping on several processes, which are real ones."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from detr.engine import launching
from detr.engine.defaults import parse_and_launch
from detr.engine.launching import check_machines, launch
from detr.errors import InputError
from tests.conftest import QUICKSTART, ROOT, SHORT, TINY, as_opts

SCRIPT = Path(__file__).with_name("rank_script.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def command(settings, *options):
    """A training of two images a step without loader workers, on whatever ranks there are."""
    small = {**TINY, **SHORT, "SOLVER.IMS_PER_BATCH": 2, "DATALOADER.NUM_WORKERS": 0, **settings}
    return [str(SCRIPT), *options, "--config-file", str(QUICKSTART), *as_opts(small)]


def start(arguments, output, **environment):
    """A Python process whose output goes to a file."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    with open(output, "w") as file:
        return subprocess.Popen([sys.executable, *arguments], stdout=file, stderr=file, cwd=ROOT, env=variables)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def few_objects(shapes_root, tmp_path_factory):
    """Keys of a training set whose images have no object but one, and of a test set of a single image."""
    folder = tmp_path_factory.mktemp("few")
    keys = []
    for name, images, objects in (("train", 12, 1), ("val", 1, 100)):
        truth = json.loads((shapes_root / "shapes" / "annotations" / f"instances_{name}.json").read_text())
        truth["images"] = truth["images"][:images]
        ids = [x["id"] for x in truth["images"]]
        truth["annotations"] = [x for x in truth["annotations"] if x["image_id"] in ids][:objects]
        shutil.copytree(shapes_root / "shapes" / name, folder / name)
        (folder / name / "few.json").write_text(json.dumps(truth))
        keys.append((f"few_{name}", str(folder / name / "few.json")))
    return {
        "DATASETS.REGISTER": tuple(keys),
        "DATASETS.TRAIN": ("few_train",),
        "DATASETS.TEST": ("few_val",),
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
    }


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_all_go_on_with_empty_ranks(few_objects, tmp_path):
    settings = {**few_objects, "OUTPUT_DIR": tmp_path / "run", "SOLVER.MAX_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 2}
    arguments = [*TORCHRUN, "--max_restarts", "1", *command(settings)]
    assert start(arguments, tmp_path / "out", FAULT="kill:1:2").wait(300) == 0
    text = (tmp_path / "out").read_text()
    assert "stopped by" not in text  # torchrun's signal to the rank that is left
    assert text.count("torchrun has restarted the processes: going on from the last checkpoint") == 1
    assert " ".join(text.split()).count("model_0000001.pth, with optimizer") == 1  # long lines are folded
    assert text.count("Results on few_val") == 1  # one rank has had no image
    assert (tmp_path / "run" / "model_final.pth").is_file()


@pytest.mark.slow
def test_a_rank_that_raises_ends_the_job_with_its_error_first(shapes_root, tmp_path):
    started = start([*TORCHRUN, *command({"OUTPUT_DIR": tmp_path / "run"})], tmp_path / "out", FAULT="raise:1:0")
    assert started.wait(300) == 1
    text = (tmp_path / "out").read_text()
    first = text.split("Traceback", 1)[1]
    assert first.split("Error: ", 1)[1].startswith("this rank alone fails")
    assert "gloo" not in text.split("this rank alone fails")[0]


@pytest.mark.slow
def test_bad_input_is_one_line_for_all_ranks(tmp_path):
    assert start([*TORCHRUN, *command({})], tmp_path / "out", FAULT="input:0:0").wait(300) == 1
    text = (tmp_path / "out").read_text()
    assert text.count("what all ranks say") == 1
    assert text.startswith("error: what all ranks say\n")


@pytest.mark.slow
def test_two_machines_stop_by_a_signal_to_one_parent(shapes_root, tmp_path):
    settings = {"OUTPUT_DIR": tmp_path / "run", "SOLVER.MAX_ITER": 100000}
    url = f"tcp://127.0.0.1:{free_port()}"
    machines = []
    for rank in (1, 0):  # the first machine may come later
        options = ["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url]
        machines.append(start(command(settings, *options), tmp_path / f"out{rank}"))
    metrics = tmp_path / "run" / "metrics.json"
    end = time.monotonic() + 300
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < end:
        assert [x.poll() for x in machines] == [None, None], (tmp_path / "out0").read_text()
        time.sleep(0.1)
    machines[0].send_signal(signal.SIGINT)
    assert [x.wait(120) for x in machines] == [130, 130]
    text = (tmp_path / "out0").read_text()
    saved = (tmp_path / "run" / "last_checkpoint").read_text()
    assert f"stopped by SIGINT: {tmp_path / 'run' / saved} is saved; the same command with --resume goes on" in text
    assert "Traceback" not in text + (tmp_path / "out1").read_text()


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ((2, 0, "auto"), "--dist-url auto is for one machine"),
        ((2, 5, "tcp://host:1"), "--machine-rank is 5: it must be one of 0 to 1"),
        ((2, -1, "tcp://host:1"), "--machine-rank is -1"),
        ((1, 1, "auto"), "--machine-rank is 1: it must be one of 0 to 0"),
        ((0, 0, "auto"), "--num-machines is 0"),
        ((2, 0, "tcp://host"), "tcp://host needs the first machine and a port"),
        ((2, 0, "tcp://host:port"), "tcp://host:port needs the first machine and a port"),
    ],
)
def test_machines_that_would_wait_for_ever_are_refused(machines, message):
    with pytest.raises(InputError, match=message):
        check_machines(*machines)
    check_machines(2, 1, "tcp://host:29500")
    check_machines(1, 0, "auto")


def test_a_first_machine_that_does_not_answer_is_named_after_a_while(monkeypatch, capsys):
    monkeypatch.setattr(launching, "FIRST_MACHINE_WAIT", 0.0)
    options = ["--num-machines", "2", "--machine-rank", "1", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
    monkeypatch.setattr(sys, "argv", ["train_net.py", *options])
    with pytest.raises(SystemExit) as ended:
        parse_and_launch(lambda _: pytest.fail("starts"), "")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "the machine with --machine-rank 0 does not answer" in error
    assert error.count("\n") == 1


def test_processes_are_asked_for_once(monkeypatch, capsys):
    for name in launching.TORCHRUN:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--num-gpus", "2"])
    with pytest.raises(SystemExit):
        parse_and_launch(lambda _: pytest.fail("starts"), "")
    assert "torchrun starts the processes itself: leave out --num-gpus" in capsys.readouterr().err


def test_more_gpus_than_there_are_name_torchrun(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["train_net.py", "--num-gpus", "2"])
    with pytest.raises(SystemExit):
        parse_and_launch(lambda _: pytest.fail("starts"), "")
    assert "torchrun --nproc_per_node N starts N processes on the CPU" in capsys.readouterr().err


def test_torchrun_with_one_process_needs_no_group(monkeypatch):
    for name in launching.TORCHRUN:
        monkeypatch.setenv(name, "0" if name.endswith("RANK") else "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    args = launching.argparse.Namespace(num_gpus=1, resume=False, eval_only=False)
    seen = []
    launch(lambda x: seen.append((x.resume, torch.distributed.is_initialized())), args)
    assert seen == [(True, False)]
