"""What goes into the page: curves, pictures of mistakes, and what a config changes."""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from detr.report.figures import line_chart
from detr.report.kinds import KINDS
from detr.report.summary import summarize
from detr.report.training import training_figures
from detr.report.worst import draw_pair
from tests.report.made_up import made_up_run, worst_image


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def near(picture: np.ndarray, kind: str) -> np.ndarray:
    """Where the picture has the color of a kind, about: (H, W) bool."""
    return (abs(picture - 255 * np.array(KINDS[kind].rgb)) < 40).all(-1)


def test_boxes_have_the_color_of_their_kind(tmp_path):
    pair = draw_pair(worst_image(tmp_path), ["cat"])
    truth, prediction = pixels(pair.truth), pixels(pair.prediction)
    scale = truth.shape[0] / 120
    for picture, kind, other, box in (
        (truth, "missed", "background", (20, 30, 60, 90)),
        (prediction, "background", "missed", (90, 30, 140, 90)),
    ):
        rows, columns = np.nonzero(near(picture, kind))
        extent = (columns.min(), rows.min(), columns.max(), rows.max())
        np.testing.assert_allclose(extent, np.array(box) * scale, atol=4)
        assert not near(picture, other).any()
    assert pair.caption == "1 background, 1 missed"
    assert (pair.name, pair.problem) == ("gray.png", "")


def test_mistakes_are_drawn_beside_what_is_correct(tmp_path):
    image = dataclasses.replace(
        worst_image(tmp_path),
        boxes=np.array([[20.0, 30.0, 60.0, 90.0], [90.0, 30.0, 140.0, 90.0]]),
        classes=np.array([0, 0]),
        scores=np.array([0.9, 0.8]),
        kinds=("correct", "duplicate"),
    )
    picture = pixels(draw_pair(image, ["cat"]).prediction)
    half = picture.shape[1] // 2
    for kind, left, right in (("correct", True, False), ("duplicate", False, True)):
        assert near(picture[:, :half], kind).any() == left
        assert near(picture[:, half:], kind).any() == right


def test_an_image_that_is_gone_is_gray_and_says_so(tmp_path):
    gone = dataclasses.replace(worst_image(tmp_path), file=str(tmp_path / "gone.jpg"))
    pair = draw_pair(gone, ["cat"])
    assert "gone.jpg" in pair.problem
    assert near(pixels(pair.truth), "missed").any()


def test_a_long_curve_is_averaged():
    iterations = range(20000)
    metrics = {"total_loss": {i: 1.0 + i % 2 for i in iterations}, "lr": dict.fromkeys(iterations, 1e-4)}
    (_, loss), (_, rate) = training_figures(metrics, "data")
    assert len(loss) < 30_000 > len(rate)


def test_a_loss_that_is_not_finite_has_no_point():
    broken = {"total_loss": dict(enumerate((3.0, float("nan"), float("inf"), 2.0)))}
    assert training_figures(broken, "data") == training_figures({"total_loss": {0: 3.0, 3: 2.0}}, "data")


def test_results_of_one_of_several_data_sets():
    several = {"mine/bbox/AP": {1: 30.0, 2: 40.0}, "other/bbox/AP": {1: 90.0}}
    assert training_figures(several, "mine") == training_figures({"bbox/AP": {1: 30.0, 2: 40.0}}, "mine")
    assert training_figures({}, "mine") == []


def test_a_figure_takes_the_colors_of_the_page():
    svg = line_chart({"<a>": ([0, 1], [1, 2]), "b": ([0, 1], [2, 1])}, title='"t"', x_label="x")
    assert svg.startswith('<svg role="img" aria-label="&quot;t&quot;"')
    assert "var(--series-1)" in svg
    assert "var(--series-2)" in svg
    assert "&lt;a&gt;" in svg
    assert "#0102" not in svg
    assert "<style" not in svg


def test_the_keys_that_a_config_changes(tiny_config, tmp_path):
    import yaml

    file = tmp_path / "config.yaml"
    file.write_text(tiny_config({"INPUT.MIN_SIZE_TEST": 64, "MODEL.WEIGHTS": "x" * 999}).dump())
    summary = summarize(yaml.safe_load(file.read_text()), str(file))
    changes = {x.key: (x.value, x.default) for x in summary.changes}
    assert changes["MODEL.DETR.HIDDEN_DIM"] == ("32", "256")
    assert "MODEL.DETR.DROPOUT" not in changes or changes["MODEL.DETR.DROPOUT"][0] != changes["MODEL.DETR.DROPOUT"][1]
    assert "MODEL.PIXEL_STD" not in {key for key, (value, default) in changes.items() if value == default}
    assert len(changes["MODEL.WEIGHTS"][0]) < 250
    assert summary.size[0] == 64
    assert summary.analysis.total.parameters > 0


@pytest.mark.parametrize(
    ("config", "problem"),
    [({}, "no config"), ({"model": {}}, "no MODEL")],
)
def test_a_run_without_our_config_has_a_page(config, problem):
    summary = summarize(config, "")
    assert problem in summary.problem
    assert summary.changes == ()
    run = dataclasses.replace(made_up_run(), config=config)
    assert run.config == config
