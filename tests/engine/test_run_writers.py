"""Weights & Biases and MLflow: what a training writes is read back from their own files, without a network."""

import io
import json
import os
import socket
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.utils.events import EventStorage

from detr.engine import run_writers
from detr.engine.run_writers import MlflowWriter, RunWriter, build_run_writers, check_logging
from detr.engine.trainer import Trainer
from detr.errors import InputError

EVALUATED = {"SOLVER.MAX_ITER": 4, "TEST.EVAL_PERIOD": 2, "TEST.DRY_RUN": False, "SOLVER.CHECKPOINT_PERIOD": 100}
WANDB = {**EVALUATED, "LOGGING.WANDB": "shapes"}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    __import__("wandb").teardown()  # else its process outlives the tests


@pytest.fixture
def tracking_uri(monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return str(tmp_path / "mlruns")


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: protocol buffers in the blocks of a LevelDB log, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into what is left of the block
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def wandb_run(path: Path) -> dict[str, Any]:
    """An offline run's id, names, config, exit code and history, and how much of what was printed is in it."""
    __import__("wandb").teardown()  # its process may write the last of a file later than it says
    found: dict[str, Any] = {"history": [], "prints": 0}
    for record in wandb_records(path):
        if record.HasField("run"):
            run = record.run
            config = {update.key: json.loads(update.value_json) for update in run.config.update}
            found |= {"id": run.run_id, "project": run.project, "name": run.display_name, "config": config}
        if record.HasField("history"):
            items = record.history.item
            found["history"].append({item.nested_key[0]: json.loads(item.value_json) for item in items})
        found["prints"] += record.HasField("output") or record.HasField("output_raw")
        if record.HasField("exit"):
            found["exit_code"] = record.exit.exit_code
    return found


def wandb_runs(cfg) -> list[dict[str, Any]]:
    folders = Path(cfg.OUTPUT_DIR, "wandb").glob("offline-run-*/*.wandb")
    return [wandb_run(path) for path in sorted(folders, key=os.path.getmtime)]


def resumed(cfg, max_iter):
    cfg.SOLVER.MAX_ITER = max_iter
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    return trainer


def values(run, key):
    return {x["iteration"]: x[key] for x in run["history"] if key in x}


@pytest.mark.slow
def test_wandb_gets_config_and_metrics_and_goes_on_with_the_run(shapes_root, run_config, offline):
    cfg = run_config(WANDB)
    Trainer(cfg).train()
    (run,) = wandb_runs(cfg)
    assert (run["project"], run["name"], run["exit_code"]) == ("shapes", "run", 0)
    assert run["config"]["MODEL"]["DETR"]["NUM_CLASSES"] == 4
    assert "LOGGING" not in run["config"]
    assert values(run, "bbox/AP").keys() == {1, 4}
    assert values(run, "total_loss").keys() == {1, 3}
    assert run["prints"] == 0

    resumed(cfg, max_iter=6).train()
    _, again = wandb_runs(cfg)
    assert again["id"] == run["id"] == Path(cfg.OUTPUT_DIR, "wandb_run_id.txt").read_text()
    assert values(again, "total_loss").keys() == {5}


@pytest.mark.slow
def test_a_new_training_in_the_folder_is_a_new_run_and_a_diverged_one_has_failed(shapes_root, run_config, offline):
    cfg = run_config({**WANDB, "SOLVER.BASE_LR": 1e30})
    for _ in range(2):
        with pytest.raises(FloatingPointError):
            Trainer(cfg).train()
    runs = wandb_runs(cfg)
    assert [run["exit_code"] for run in runs] == [1, 1]
    assert len({run["id"] for run in runs}) == 2


@pytest.mark.slow
def test_a_run_that_the_user_has_opened_is_used_and_stays_open(shapes_root, run_config, offline, tmp_path):
    import wandb

    with wandb.init(project="own", name="mine", dir=tmp_path, config={"note": 1}) as run:
        Trainer(run_config(WANDB)).train()
        run.log({"after": 1.0})
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = wandb_run(path)
    assert (found["id"], found["project"], found["name"]) == (run.id, "own", "mine")
    assert values(found, "bbox/AP").keys() == {1, 4}
    assert found["history"][-1]["after"] == 1.0


def test_mlflow_gets_params_and_metrics_and_goes_on_with_the_run(shapes_root, run_config, tracking_uri):
    from mlflow import MlflowClient

    cfg = run_config({**EVALUATED, "LOGGING.MLFLOW": tracking_uri})
    Trainer(cfg).train()
    client = MlflowClient(tracking_uri=tracking_uri)

    def found():
        (run,) = client.search_runs(["0"])
        return run, lambda name: {x.step: x.value for x in client.get_metric_history(run.info.run_id, name)}

    run, history = found()
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.info.run_id == Path(cfg.OUTPUT_DIR, "mlflow_run_id.txt").read_text()
    assert run.data.params["MODEL.DETR.NUM_CLASSES"] == "4"
    assert run.data.params["MODEL.WEIGHTS"] == ""
    assert not any("LOGGING" in name for name in run.data.params)
    lines = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    for name in ("total_loss", "bbox/AP", "bbox/AP-disc"):
        assert history(name) == pytest.approx({x["iteration"]: x[name] for x in lines if name in x}, nan_ok=True)
    assert history("total_loss").keys() == {1, 3}

    resumed(cfg, max_iter=6).train()
    run, history = found()
    assert history("total_loss").keys() == {1, 3, 5}
    assert (run.info.status, run.data.params["SOLVER.MAX_ITER"]) == ("FINISHED", "4")


def test_a_failed_training_is_a_failed_run_of_mlflow(shapes_root, run_config, tracking_uri, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with pytest.raises(FloatingPointError):
        Trainer(run_config({**EVALUATED, "LOGGING.MLFLOW": tracking_uri, "SOLVER.BASE_LR": 1e30})).train()
    client = MlflowClient(tracking_uri=tracking_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FAILED"


def test_names_that_mlflow_refuses_are_changed(tmp_path, tracking_uri):
    from mlflow import MlflowClient

    writer = MlflowWriter(tracking_uri=tracking_uri, folder=str(tmp_path), config={"A": {"B": [1, 2]}})
    with EventStorage(3) as storage:
        storage.put_scalar("bbox/AP-cup (small), £", 5.0)
        writer.write()
        writer.close()
    client = MlflowClient(tracking_uri=tracking_uri)
    (run,) = client.search_runs(["0"])
    assert run.data.metrics == {"bbox/AP-cup _small__ _": 5.0}
    assert run.data.params == {"A.B": "[1, 2]"}


def test_a_server_that_is_gone_is_one_warning(shapes_root, run_config, caplog, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    cfg = run_config({**EVALUATED, "LOGGING.MLFLOW": "http://127.0.0.1:1"})
    Trainer(cfg).train()
    assert Path(cfg.OUTPUT_DIR, "model_final.pth").exists()
    assert caplog.text.count("MLflow fails, and the training goes on without it: ") == 1
    assert not Path(cfg.OUTPUT_DIR, "mlflow_run_id.txt").exists()


def test_a_server_that_does_not_answer_holds_nothing_up(tmp_path, caplog, monkeypatch):
    pytest.importorskip("mlflow.entities")
    monkeypatch.setattr(run_writers, "OPENING_SECONDS", 0.1)
    monkeypatch.setattr(run_writers, "CLOSING_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # else the thread outlives the test
    with socket.create_server(("127.0.0.1", 0)) as server, EventStorage(0) as storage:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        writer = MlflowWriter(tracking_uri=uri, folder=str(tmp_path), config={})
        for storage.iter in range(50):
            storage.put_scalar("loss", 1.0)
            writer.write()
        writer.close()
    assert "MLflow: not everything was sent within 0.5 seconds" in caplog.text


class ListWriter(RunWriter):
    """A tracker of the user's own, which cannot be reached now and then."""

    title, file_name = "the list", "list_run_id.txt"

    def __init__(self, folder, failures):
        super().__init__(folder=str(folder), config={})
        self.failures = failures  # a truth value for each sending
        self.sent = {}
        self.finished = None

    def open(self, run_id):
        return run_id or "new"

    def send(self, scalars):
        if self.failures and self.failures.pop(0):
            raise OSError("no route to host\nand more")
        self.sent |= {iteration: dict(values) for iteration, values in scalars.items()}

    def finish(self, failed):
        self.finished = failed


class SlowWriter(ListWriter):
    is_open = False

    def open(self, run_id):
        time.sleep(0.2)
        self.is_open = True
        return super().open(run_id)


def test_the_run_is_open_before_data_loading_forks(tmp_path):
    writer = SlowWriter(tmp_path, [])
    writer.start(resume=False)
    assert writer.is_open
    writer.close()


def test_what_could_not_be_sent_comes_later(tmp_path, caplog):
    writer = ListWriter(tmp_path, [False, True, True, False])
    with EventStorage(0) as storage:
        for storage.iter in range(5):
            storage.put_scalar("loss", float(storage.iter), smoothing_hint=False)
            writer.write()
        writer.close()
    assert writer.sent == {i: {"loss": float(i)} for i in range(5)}
    assert writer.finished is False
    assert caplog.text.count("the list fails, and the training goes on without it: OSError: no route to host\n") == 1


def test_a_trainer_with_writers_of_its_own(shapes_root, run_config):
    class Mine(Trainer):
        def build_writers(self):
            self.mine = ListWriter(self.cfg.OUTPUT_DIR, [])
            return [*super().build_writers(), self.mine]

    trainer = Mine(run_config(EVALUATED))
    assert build_run_writers(trainer.cfg) == []
    trainer.train()
    assert trainer.mine.sent[1].keys() >= {"total_loss", "bbox/AP"}


def test_an_interrupted_training_has_failed(shapes_root, run_config):
    class Mine(Trainer):
        def build_writers(self):
            self.mine = ListWriter(self.cfg.OUTPUT_DIR, [])
            return [self.mine]

        def run_step(self):
            raise KeyboardInterrupt

    trainer = Mine(run_config(EVALUATED))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.mine.finished is True


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
@pytest.mark.parametrize("found", [None, types.ModuleType("folder")])
def test_a_missing_package_is_an_error(shapes_root, run_config, monkeypatch, package, found):
    monkeypatch.setitem(sys.modules, package, found)
    with pytest.raises(InputError, match=rf"package {package} is not installed: pip install -e '\.\[{package}\]'"):
        Trainer(run_config({f"LOGGING.{package.upper()}": "x"}))


def test_a_tracking_uri_that_cannot_be_used_is_an_error(run_config, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(InputError, match=r"which MLflow cannot use: name a server, .* MLFLOW_ALLOW_FILE_STORE=true$"):
        check_logging(run_config({"LOGGING.MLFLOW": str(tmp_path / "runs")}))


def test_nobody_logged_in_is_an_error(run_config, offline, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # the user's netrc
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody can be asked
    cfg = run_config({"LOGGING.WANDB": "x"})
    with pytest.raises(InputError, match=r"nobody is logged in to Weights & Biases: run `wandb login`"):
        check_logging(cfg)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    __import__("wandb").teardown()
    check_logging(cfg)
