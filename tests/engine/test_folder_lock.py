"""One training a folder."""

import contextlib
import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest

from detr.engine import folder_lock
from detr.engine.defaults import check_output_folder
from detr.engine.folder_lock import LOCK, lock_folder
from detr.engine.trainer import Trainer
from detr.errors import InputError


@pytest.fixture
def other_training(tmp_path):
    """The process id of one that has locked tmp_path, with a process of its own that lives on."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        lock_folder(str(tmp_path))
        worker = os.fork()
        if worker:
            os.write(writing, str(worker).encode())
        signal.pause()
    worker = int(os.read(reading, 20))
    yield pid
    for process in (pid, worker):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_second_training_is_refused_until_the_first_is_gone(tmp_path, other_training):
    for _ in range(2):
        with pytest.raises(InputError) as error:
            lock_folder(str(tmp_path))
        assert f"OUTPUT_DIR {tmp_path} belongs to a training that runs (pid {other_training} on " in str(error.value)
        assert " since 20" in str(error.value)
        assert "\n" not in str(error.value)
        with pytest.raises(InputError, match="belongs to a training that runs"):
            check_output_folder(str(tmp_path))  # before tools write their plans
    lock_folder(str(tmp_path / "second"))
    os.kill(other_training, signal.SIGKILL)
    os.waitpid(other_training, 0)  # its own process lives on
    check_output_folder(str(tmp_path))
    lock_folder(str(tmp_path))
    lock_folder(f"{tmp_path}/../{tmp_path.name}")  # it has it
    check_output_folder(str(tmp_path))
    if not (pid := os.fork()):
        with contextlib.suppress(InputError):
            lock_folder(str(tmp_path))
            os._exit(1)
        os._exit(7)  # refused: no descriptor that was closed has released the lock
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert (tmp_path / LOCK).read_text().startswith(f"pid {os.getpid()} on ")


@pytest.mark.usefixtures("shapes_root", "writers_are_closed")
def test_a_trainer_without_setup_takes_the_lock_too(run_config, tmp_path, other_training):
    with pytest.raises(InputError, match=f"pid {other_training} "):
        Trainer(run_config({"OUTPUT_DIR": tmp_path})).train()


@pytest.mark.usefixtures("shapes_root", "writers_are_closed")
def test_what_a_killed_training_was_writing_is_removed_with_the_lock_alone(run_config):
    """Without it, another training may be writing that file."""
    cfg = run_config()
    leftover = Path(cfg.OUTPUT_DIR, ".model_0000009.pth.0123abcd.part")
    leftover.touch()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert leftover.exists()
    trainer.train()
    assert not leftover.exists()


def test_where_there_are_no_locks_a_training_goes_without(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    lock_folder(str(tmp_path))
    lock_folder("s3://bucket/output")
    assert not [path for _, path in folder_lock._held if path.startswith(str(tmp_path))]
