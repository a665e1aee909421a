"""Curves of trainings, from metrics files as trainings leave them."""

import json
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image

from detr.engine.metrics_files import read_metrics, run_names
from detr.errors import InputError
from detr.pictures.curves import PANELS, RESULTS, Panel, draw_panel, panels_of, plot_runs, plot_training
from tools import plot_metrics


def write(folder, *rows, end="\n"):
    """A metrics.json of rows (iteration, metrics), or of lines as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [x if isinstance(x, str) else json.dumps({"iteration": x[0], **x[1]}) for x in rows]
    path = folder / "metrics.json"
    path.write_text("\n".join(lines) + end)
    return str(path)


def width(path):
    with Image.open(path) as picture:
        return picture.width


def loss(iteration, value):
    return iteration, {"total_loss": value}


def test_a_line_that_a_killed_training_left_is_skipped(tmp_path):
    path = write(tmp_path, loss(19, 3.0), '{"iteration": 39, "total_l', end="")
    assert read_metrics(path) == {"total_loss": {19: 3.0}}
    path = write(tmp_path, loss(19, 3.0), '{"iteration": 39, "tot{"iteration": 59}', loss(79, 1.0), "7", "[]")
    assert read_metrics(path) == {"total_loss": {19: 3.0, 79: 1.0}}


def test_what_a_resumed_training_repeats_counts(tmp_path):
    first = [loss(19, 4.0), loss(39, 3.0), loss(59, 2.5), (59, {"bbox/AP": 10.0})]
    path = write(tmp_path, *first, loss(39, 3.5), loss(49, 2.0))
    assert read_metrics(path) == {"total_loss": {19: 4.0, 39: 3.5, 49: 2.0}}


def test_values_that_are_no_numbers(tmp_path):
    path = write(tmp_path, loss(0, math.nan), loss(1, math.inf), (2, {"total_loss": 1, "name": "x", "flag": True}))
    metrics = read_metrics(path)
    assert metrics.keys() == {"total_loss"}
    assert [*map(math.isnan, metrics["total_loss"].values())] == [True, True, False]


def test_runs_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none/metrics\.json does not exist|none does not exist"):
        read_metrics(str(tmp_path / "none"))
    with pytest.raises(InputError, match="is empty, since the training has just begun"):
        read_metrics(write(tmp_path, end=""))
    with pytest.raises(InputError, match="holds no metrics"):
        read_metrics(write(tmp_path, "iteration 3"))


def test_a_run_has_its_folders_name_or_as_much_as_tells_it_apart(tmp_path):
    assert run_names([str(tmp_path / "a"), str(tmp_path / "b" / "metrics.json")]) == ["a", "b"]
    assert run_names([f"{tmp_path}/x/run", f"{tmp_path}/y/run/"]) == ["x/run", "y/run"]


def lines_of(panel, runs):
    axis = Figure().subplots()
    draw_panel(axis, panel, runs)
    return axis, [(x.get_color(), x.get_linestyle(), list(x.get_xdata()), list(x.get_ydata())) for x in axis.lines]


RUN = {"bbox/AP": {9: 10.0, 19: 20.0}, "segm/AP": {9: 5.0, 19: 15.0}}


def test_one_run_has_a_color_a_metric_and_several_have_one_each():
    axis, lines = lines_of(RESULTS, {"": RUN})
    assert lines == [("C0", "-", [9, 19], [10.0, 20.0]), ("C1", "-", [9, 19], [5.0, 15.0])]
    assert [x.get_text() for x in axis.get_legend().get_texts()] == ["box AP", "mask AP"]
    _, lines = lines_of(RESULTS, {"a": RUN, "b": {"bbox/AP": {9: 1.0}}})
    assert [x[:2] for x in lines] == [("C0", "-"), ("C0", "--"), ("C1", "-")]


def test_each_of_several_test_sets_has_its_curve():
    axis, lines = lines_of(RESULTS, {"": {"first/bbox/AP": {9: 1.0}, "second/bbox/AP": {9: 2.0}, "xbbox/AP": {9: 3.0}}})
    assert [y for *_, y in lines] == [[1.0], [2.0]]
    assert [x.get_text() for x in axis.get_legend().get_texts()] == ["first box AP", "second box AP"]


def test_a_spike_does_not_flatten_the_rest():
    spiked = {"": {"total_loss": {**dict.fromkeys(range(9), 2.0), 9: 1e6}}}
    assert lines_of(Panel("loss", {"total_loss": ""}), spiked)[0].get_yscale() == "log"
    healthy = {"": {"total_loss": {0: 20.0, 1: 2.0, 2: 1.0}}}
    assert lines_of(Panel("loss", {"total_loss": ""}), healthy)[0].get_yscale() == "linear"


def test_pictures_are_written_whole_into_a_folder_that_may_be_new(tmp_path):
    path = write(tmp_path, loss(19, 3.0), loss(39, 2.0))
    plot_training(path, str(tmp_path / "training.png"))  # without an evaluation
    plot_runs({"": read_metrics(path)}, str(tmp_path / "new" / "x.pdf"))
    assert width(tmp_path / "training.png") > 300
    assert (tmp_path / "new" / "x.pdf").read_bytes().startswith(b"%PDF")
    assert sorted(x.name for x in tmp_path.iterdir()) == ["metrics.json", "new", "training.png"]
    for bad in ("x.txt", "x"):
        with pytest.raises(InputError, match="has no ending of a picture"):
            plot_runs({"": read_metrics(path)}, str(tmp_path / bad))
    with pytest.raises(InputError, match="cannot be written"):
        plot_runs({"": read_metrics(path)}, str(tmp_path / "metrics.json" / "x.png"))


def test_panels_of_given_keys(tmp_path):
    runs = {"a": {"loss_ce": {9: 1.0}}, "b": {"loss_giou": {9: 2.0}}}
    assert [panel.title for panel in panels_of(["loss_giou", "loss_ce"], runs)] == ["loss_giou", "loss_ce"]
    with pytest.raises(InputError, match="no run has the metric loss: it must be one of loss_ce, loss_giou"):
        panels_of(["loss"], runs)
    with pytest.raises(InputError, match="name metrics with --keys"):
        plot_runs(runs, str(tmp_path / "x.png"), PANELS)


def test_the_command_draws_two_runs_and_sums_them_up(tmp_path, capsys):
    write(
        tmp_path / "detr",
        loss(19, 3.0),
        (39, {"total_loss": 2.0, "bbox/AP": 30.0, "lr": 1e-4}),
        (59, {"bbox/AP": 28.0}),
    )
    mask_rcnn = write(
        tmp_path / "rcnn", (39, {"total_loss": 1.25, "mask_rcnn/accuracy": 0.9, "fast_rcnn/cls_accuracy": 1})
    )
    plot_metrics.main([str(tmp_path / "detr"), mask_rcnn, "--output", str(tmp_path / "both.png")])
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["detr", "40", "2.00", "30.0", "at", "39"] in rows
    assert ["rcnn", "40", "1.25", "-"] in rows
    assert width(tmp_path / "both.png") > 300
    with pytest.raises(InputError, match="the same run is named twice"):
        plot_metrics.main([mask_rcnn, str(tmp_path / "rcnn")])
