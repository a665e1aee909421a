"""What is on the terminal, and what is not."""

import logging
import math
import re
import subprocess
import sys

import pytest
import torch
from detectron2.utils.logger import setup_logger

from detr.engine import progress, terminal
from detr.engine.machine import seconds_on_cpu
from detr.evaluation.results import results_text
from tests.conftest import QUICKSTART, ROOT, SHORT, TINY, as_opts


@pytest.fixture
def quiet(tmp_path):
    """The terminal as ``setup`` makes it; yields the folder of log.txt."""
    handlers = {name: list(logging.getLogger(name).handlers) for name in terminal.LOGGERS}
    for _ in range(2):  # as a script that sets up a training and then an evaluation
        with terminal.quiet_logging():
            for name in terminal.LOGGERS:
                setup_logger(str(tmp_path), name=name)
    yield tmp_path
    for name, before in handlers.items():
        logging.getLogger(name).handlers[:] = before


def test_warnings_come_one_a_line_and_all_the_rest_is_in_the_file(quiet, capsys):
    logging.getLogger("detr.data").info("a table")
    logging.getLogger("detr.data").warning("two\nlines of %s", "mine")
    logging.getLogger("detectron2.engine").warning("\x1b[31m" + "word " * 200)
    logging.getLogger("detectron2.engine.train_loop").error("Exception during training:")
    terminal.show("shown")
    out, err = capsys.readouterr()
    assert out == "shown\n"
    first, second = err.splitlines()
    assert first == "warning: two lines of mine"
    assert second.startswith("warning: word word")
    assert second.endswith("word ... (the rest is in log.txt)")
    log = (quiet / "log.txt").read_text()
    assert all(text in log for text in ("a table", "two\nlines of mine", "word " * 200, "Exception during training:"))


def test_without_setup_nothing_is_shown(capsys):
    """A script with Detectron2's default_setup and our Trainer keeps Detectron2's log, and gets no bar."""
    terminal.show("shown")
    meter = progress.Meter("training", 10)
    meter.update(lambda: pytest.fail("nobody would see it"))
    meter.close()
    assert capsys.readouterr() == ("", "")


def test_lines_come_at_growing_intervals_where_there_is_no_terminal(quiet, capsys, monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    meter = progress.Meter("training", 300)
    for now in range(1, 301):  # noqa: B007  a step a second
        meter.update(lambda: "loss 1.0")
    assert capsys.readouterr().out.splitlines() == [
        f"training {n}/300, loss 1.0" for n in (10, 30, 60, 105, 165, 225, 285)
    ]


def test_the_time_left_counts_evaluations_that_were_measured():
    left = {"steps_left": 100, "step": 0.5, "evaluations_left": 3, "other": 40.0}
    assert progress.seconds_left(evaluations=0, **left) == 50
    assert progress.seconds_left(evaluations=2, **left) == 50 + 3 * 20


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (89, "89 s"), (91, "2 min"), (5300, "88 min"), (9000, "2.5 h"), (2e5, "2.3 days")],
)
def test_seconds_are_told_as_people_do(seconds, text):
    assert terminal.format_seconds(seconds) == text


def test_the_estimated_time_takes_no_random_numbers_from_the_training(tiny_config):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert seconds_on_cpu(tiny_config()) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_many_classes_are_shortened():
    assert terminal.few(["cat", "dog"]) == "cat, dog"
    assert terminal.few(["class"] * 80, width=20) == "class, class and 78 more"


def test_results_are_one_row_a_task_with_the_classes_where_they_are_few():
    box = {"AP": 70.52, "AP50": 96.0, "APl": math.nan, "AP-cat": 80.0, "AP-dog": 61.04}
    mask = {"AP": 60.0, "AP50": 90.0, "APl": math.nan, "AP-cat": 70.0, "AP-dog": 50.0}
    text = results_text({"mine": {"bbox": box, "segm": mask, "panoptic_seg": {"PQ": 81.25, "SQ": 90.0}}})
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["AP", "AP50", "APl"],
        ["box", "70.5", "96.0", "-"],
        ["mask", "60.0", "90.0", "-"],
        ["PQ", "SQ"],
        ["panoptic", "81.2", "90.0"],
        ["class", "box", "AP", "mask", "AP"],
        ["cat", "80.0", "70.0"],
        ["dog", "61.0", "50.0"],
    ]
    many = {"AP": 1.0, **{f"AP-{i}": 1.0 for i in range(21)}}
    assert "class" not in results_text({"mine": {"bbox": many}})
    fifteen = {"AP": 1.0, **{f"AP-name{i}": 1.0 for i in range(15)}}
    assert len(results_text({"mine": {"bbox": fifteen}}).splitlines()) == 3 + 1 + 5  # three columns of classes


@pytest.fixture
def run(shapes_root, tmp_path):
    """run(*arguments) starts a training of two steps with train_net.py, and returns stdout and stderr."""

    def start(*arguments):
        opts = as_opts({**TINY, **SHORT, "OUTPUT_DIR": tmp_path / "out", "SOLVER.WARMUP_ITERS": 0})
        command = [sys.executable, "train_net.py", "--config-file", str(QUICKSTART), *arguments[:1], *opts]
        result = subprocess.run([*command, *arguments[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout, result.stderr

    return start


@pytest.mark.slow
def test_a_training_and_an_evaluation_show_one_screen_and_one_table(run, tmp_path):
    folder = tmp_path / "out"
    out, err = run("--resume")  # nothing, for now
    labels = [line.split()[0] for line in out.splitlines() if line[:1].isupper()]
    assert labels == ["Config", "Output", "Data", "Model", "Weights", "Schedule", "Results", "Done"]
    assert len(out.splitlines()) < 30
    assert "4 classes: disc, square, triangle, star" in out
    assert [line[:40] for line in err.splitlines()] == [
        f"warning: --resume: {folder} holds no checkpoint"[:40],
        "warning: a training of 2 iterations is too short"[:40],
    ]
    log = (folder / "log.txt").read_text()
    assert all(text in log for text in ("Running with full config", "All results, in percent", "What the data sets"))

    written = (folder / "config.yaml").read_text()
    out, err = run("--eval-only", f"MODEL.WEIGHTS={folder / 'model_final.pth'}")
    labels = [line.split()[0] for line in out.splitlines() if line[:1].isupper()]
    assert labels == ["Config", "Output", "Data", "Model", "Weights", "Results"]
    assert err == ""
    assert (folder / "config.yaml").read_text() == written
    assert "model_final.pth" in (folder / "config_eval.yaml").read_text()


@pytest.mark.slow
def test_verbose_is_detectron2s_log(run):
    out, _ = run("--verbose")
    assert re.search(r"d2\.engine\.train_loop.*Starting training from iteration 0", out)
    assert not re.search(r"^(Config|Schedule|Results) ", out, flags=re.MULTILINE)
