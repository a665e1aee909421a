"""Ctrl-C and SIGTERM while a training runs in this process."""

import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time

import pytest
from detectron2.engine import HookBase

from detr.checkpoint.files import damage
from detr.engine import interruption
from detr.engine.interruption import StoppedTraining, StopSignals
from detr.engine.trainer import Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Sends(HookBase):
    """Signals this process, and the loader's workers where there are any, in the middle of a step."""

    def __init__(self, iteration, *signums):
        self.iteration, self.signums = iteration, signums

    def before_step(self):
        if self.trainer.iter == self.iteration:
            workers = [process.pid for process in multiprocessing.active_children()]
            for signum in self.signums:  # from another process, as a terminal or Slurm does
                subprocess.run(["kill", f"-{signum:d}", *map(str, [*workers, os.getpid()])], check=True)


def trainer_that(cfg, *hooks, resume=False):
    trainer = Trainer(cfg)
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load(resume=resume)
    return trainer


def checkpoints(cfg):
    return sorted(name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".pth"))


@pytest.fixture(autouse=True)
def _handlers_come_back(shapes_root):
    before = [signal.getsignal(signum) for signum in SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


@pytest.mark.parametrize(("signums", "status"), [([signal.SIGINT] * 2, 130), ([signal.SIGTERM, signal.SIGINT], 143)])
def test_the_step_is_finished_and_saved_and_the_training_goes_on_from_there(
    run_config, capfd, monkeypatch, signums, status
):
    monkeypatch.setattr(interruption, "REPEAT", 60.0)  # on a busy machine the second signal may come late
    cfg = run_config({"SOLVER.MAX_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.CHECKPOINTS_KEPT": 2,
                      "DATALOADER.NUM_WORKERS": 1})  # fmt: skip
    with pytest.raises(StoppedTraining) as stopped:
        trainer_that(cfg, Sends(3, *signums)).train()
    assert stopped.value.code == status
    assert checkpoints(cfg) == ["model_0000002.pth", "model_0000003.pth"]  # once, and it counts for the rotation
    assert "model_0000003.pth is saved; the same command with --resume goes on" in capfd.readouterr().err
    trainer = trainer_that(cfg, resume=True)
    assert trainer.start_iter == 4
    trainer.train()
    assert checkpoints(cfg) == ["model_0000003.pth", "model_0000004.pth", "model_final.pth"]


def test_a_step_between_checkpoints_is_saved_with_its_metrics(run_config):
    cfg = run_config({"SOLVER.MAX_ITER": 9, "SOLVER.CHECKPOINT_PERIOD": 100})
    with pytest.raises(StoppedTraining):
        trainer_that(cfg, Sends(1, signal.SIGTERM)).train()
    assert checkpoints(cfg) == ["model_0000001.pth"]
    with open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")) as file:
        assert 1 in [row["iteration"] for row in map(json.loads, file)]


def test_a_damaged_checkpoint_of_the_same_step_is_saved_again(run_config):
    cfg = run_config({"SOLVER.MAX_ITER": 9, "SOLVER.CHECKPOINT_PERIOD": 2})
    path = os.path.join(cfg.OUTPUT_DIR, "model_0000002.pth")
    for resume in (False, True):
        with pytest.raises(StoppedTraining):
            trainer_that(cfg, Sends(2, signal.SIGTERM), resume=resume).train()
        assert damage(path) is None
        if not resume:
            os.truncate(path, 1000)  # the second time it goes on from model_0000001.pth


def test_in_the_last_step_the_final_checkpoint_is_saved_and_not_evaluated(run_config, monkeypatch):
    cfg = run_config({"SOLVER.MAX_ITER": 2})
    monkeypatch.setattr(Trainer, "test", lambda *_: pytest.fail("is evaluated"))
    with pytest.raises(StoppedTraining):
        trainer_that(cfg, Sends(1, signal.SIGTERM)).train()
    assert checkpoints(cfg) == ["model_final.pth"]


class KilledInEvaluation(Trainer):
    """A signal comes while it evaluates. It has no checkpoints of its own before evaluations."""

    signum, after = signal.SIGTERM, "never"

    def build_hooks(self):
        hooks = super().build_hooks()
        for hook in hooks:
            if hasattr(hook, "evaluation_period"):
                hook.evaluation_period = 0
        return hooks

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        os.kill(os.getpid(), cls.signum)
        pytest.fail("goes on evaluating")


@pytest.mark.parametrize(("period", "name"), [(2, "model_0000001.pth"), (0, "model_final.pth")])
def test_an_evaluation_ends_at_once_with_a_checkpoint_of_its_step(run_config, capfd, period, name):
    cfg = run_config({"SOLVER.MAX_ITER": 3, "TEST.EVAL_PERIOD": period, "SOLVER.CHECKPOINT_PERIOD": 100})
    with pytest.raises(StoppedTraining) as stopped:
        KilledInEvaluation(cfg).train()
    assert (stopped.value.code, checkpoints(cfg)) == (143, [name])
    assert f"{name} is saved" in capfd.readouterr().err


class Fails(HookBase):
    def after_step(self):
        raise ZeroDivisionError


def test_an_error_after_the_signal_is_raised_and_saves_nothing(run_config):
    cfg = run_config()
    trainer = Trainer(cfg)
    trainer._hooks.insert(0, Fails())
    trainer.register_hooks([Sends(0, signal.SIGINT)])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert checkpoints(cfg) == []


def status_of(work):
    """How a forked process ends that does the work, and what it prints on stderr."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.dup2(writing, 2)
        try:
            work()
        finally:
            os._exit(99)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


def test_a_second_ctrl_c_ends_at_once_and_an_echo_of_the_first_does_not(monkeypatch):
    monkeypatch.setattr(interruption, "REPEAT", 0.2)

    def work():
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)
            assert signals.requested == signal.SIGINT
            os.write(2, b"still there")
            os.kill(os.getpid(), signal.SIGINT)
            os.write(2, b"too long there")

    status, text = status_of(work)
    assert status == 130
    assert text.count("Ctrl-C again ends at once") == 1
    assert "still there" in text
    assert text.endswith("interrupted again: this ends at once, without saving\n")


def test_a_sigterm_after_ctrl_c_is_no_second_ctrl_c(monkeypatch):
    monkeypatch.setattr(interruption, "REPEAT", 0.0)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.requested == signal.SIGINT


def test_a_worker_obeys_its_loader_alone():
    """Only signals of the loader's process end it, as where it does not end by itself."""

    def work():
        with StopSignals():
            worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            worker.start()
            stranger = os.fork()
            if not stranger:
                for signum in SIGNALS:
                    os.kill(worker.pid, signum)
                os._exit(0)
            os.waitpid(stranger, 0)
            worker.join(0.5)
            survived = worker.is_alive()
            worker.terminate()
            worker.join(5)
            os._exit(10 * survived + (not worker.is_alive()))

    assert status_of(work)[0] == 11


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with StopSignals():
            seen.append([signal.getsignal(signum) for signum in SIGNALS])

    before = [signal.getsignal(signum) for signum in SIGNALS]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
