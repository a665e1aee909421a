"""A disk that is full in the middle of a training: one line that names the file, and the files before it are whole."""

import io
import json
import logging
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter

from detr.checkpoint.files import damage
from detr.engine.disk_errors import expect_disk_errors
from detr.engine.hooks import PeriodicWriter
from detr.engine.trainer import Trainer
from detr.engine.written_configs import keep_config, save_config
from detr.errors import DiskError
from tests.conftest import QUICKSTART, ROOT, SHORT, TINY, as_opts
from tests.disk import files_of_at_most

pytestmark = pytest.mark.usefixtures("writers_are_closed")


class FullFrom(HookBase):
    """No file grows above a size from an iteration on."""

    def __init__(self, iteration, size):
        self.iteration, self.size = iteration, size

    def before_step(self):
        if self.trainer.iter == self.iteration:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


@pytest.mark.slow
@pytest.mark.parametrize("last", [False, True], ids=["in the middle", "at the end"])
def test_a_checkpoint_that_does_not_fit_ends_the_training(shapes_root, run_config, last):
    """The one before is whole and is gone on from; the evaluation at the end does not hold the error up."""
    cfg = run_config({"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "SOLVER.CHECKPOINTS_KEPT": 1})
    folder, name = Path(cfg.OUTPUT_DIR), "model_0000003.pth"
    if last:
        cfg.SOLVER.CHECKPOINT_PERIOD, name = 3, "model_final.pth"
    trainer = Trainer(cfg)
    trainer.register_hooks([FullFrom(3, 100_000)])
    with (
        files_of_at_most(resource.RLIM_INFINITY),
        pytest.raises(DiskError, match=rf"cannot write \S+{name} \(File too large; .* --resume$"),
    ):
        trainer.train()
    before = f"model_000000{2 if last else 1}.pth"
    assert [path.name for path in folder.glob("*.pth")] == [before]
    assert (folder / "last_checkpoint").read_text() == before
    assert not list(folder.glob(".*.part"))
    assert damage(str(folder / before)) is None
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.start_iter == (3 if last else 2)
    assert (folder / "model_final.pth").exists()


@pytest.mark.slow
def test_an_evaluation_whose_results_do_not_fit_is_named(shapes_root, run_config):
    cfg = run_config({"SOLVER.MAX_ITER": 1, "TEST.DRY_RUN": False})
    folder = Path(cfg.OUTPUT_DIR, "inference")
    folder.mkdir()
    (folder / "coco_instances_results.json").symlink_to("/dev/full")
    trainer = Trainer(cfg)
    with pytest.raises(DiskError, match=r"cannot write .*No space left"):
        trainer.train()
    assert damage(str(Path(cfg.OUTPUT_DIR, "model_final.pth"))) is None


@pytest.mark.parametrize("kind", ["json", "tensorboard"])
def test_metrics_that_do_not_fit_are_one_error(tmp_path, monkeypatch, kind):
    """TensorBoard writes in a thread, whose traceback is not printed; nothing is left to fail at the end."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    with expect_disk_errors():
        pass
    name = "metrics.json" if kind == "json" else "events"
    writer = JSONWriter(str(tmp_path / name)) if kind == "json" else TensorboardXWriter(str(tmp_path / name))
    hook = PeriodicWriter([writer], period=1)
    with EventStorage() as storage, files_of_at_most(20_000):
        hook.trainer = SimpleNamespace(iter=0, max_iter=10**6, start_iter=0, storage=storage)

        def write():
            for hook.trainer.iter in range(300):
                storage.iter = hook.trainer.iter
                storage.put_scalars(**{f"value_{i}": float(i) for i in range(100)})
                hook.after_step()
                if kind == "tensorboard":
                    writer._writer.flush()

        with pytest.raises(DiskError, match=rf"cannot write \S+{name} \(File too large"):
            write()
        hook.after_train()
    if kind == "json":
        lines = (tmp_path / name).read_text().splitlines()
        assert json.loads(lines[0])["value_7"] == 7
    assert stderr.getvalue() == ""


def test_a_log_that_cannot_be_written_is_one_warning(tmp_path, monkeypatch, caplog):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    log = logging.getLogger("detr")
    handler = logging.StreamHandler(open(tmp_path / "log.txt", "a"))  # noqa: SIM115
    log.addHandler(handler)
    try:
        with expect_disk_errors():
            pass
        with files_of_at_most(2000):
            for i in range(200):
                log.warning("line %d of the log", i)
    finally:
        log.removeHandler(handler)
    assert stderr.getvalue() == ""
    (line,) = (record.getMessage() for record in caplog.records if "cannot write" in record.getMessage())
    assert line == f"cannot write {tmp_path}/log.txt (File too large): the log goes on without it"
    assert handler.stream.closed
    assert len(caplog.records) == 201


def test_the_config_of_the_training_comes_back_from_a_full_disk(tiny_config, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("the training's")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"), keep_config(str(tmp_path), kept=True):
        config.write_text("an evaluation's" * 1000)
    assert config.read_text() == "the training's"
    with files_of_at_most(100), pytest.raises(DiskError, match=r"config_eval\.yaml"):
        save_config(tiny_config({"OUTPUT_DIR": tmp_path}), "eval")
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.slow
def test_the_script_ends_with_one_line_and_status_74(shapes_root, tmp_path):
    """Where neither the log nor a checkpoint fits."""
    settings = {**TINY, **SHORT, "DATASETS.TEST": "()", "OUTPUT_DIR": tmp_path / "run", "SOLVER.CHECKPOINT_PERIOD": 1}
    command = [sys.executable, "train_net.py", "--config-file", str(QUICKSTART), "--num-gpus", "0", *as_opts(settings)]
    with files_of_at_most(30_000):
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 74, result.stderr
    lines = [line for line in result.stderr.splitlines() if "is too short" not in line and "warm-up" not in line]
    assert len(lines) == 2, result.stderr
    assert lines[0] == f"warning: cannot write {tmp_path}/run/log.txt (File too large): the log goes on without it"
    assert lines[1].startswith(f"error: cannot write {tmp_path}/run/model_0000000.pth (File too large; ")
    assert not list((tmp_path / "run").glob(".*.part")) + list((tmp_path / "run").glob("*.pth"))
