"""What queries do over many images, by hand and from the command line."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from detr.checkpoint import DetrCheckpointer
from detr.engine.defaults import load_config
from detr.errors import InputError
from detr.inference.predictor import Predictor
from detr.inference.query_use import QueryUse, parse_queries
from detr.pictures.queries import box_colors, query_panels
from tests.conftest import QUICKSTART, TINY, as_opts
from tests.lively import build_lively
from tools import explore_queries


def instances(scores, classes, size=(100, 200)):
    boxes = torch.tensor([[20.0, 10.0, 60.0, 30.0], [0.0, 0.0, 200.0, 100.0], [100.0, 50.0, 110.0, 100.0]])
    return Instances(size, pred_boxes=Boxes(boxes), scores=torch.tensor(scores), pred_classes=torch.tensor(classes))


@pytest.fixture
def use():
    """Query 0 is kept in one image of four, query 1 in none, query 2 in three."""
    scores = [[0.6, 0.1, 0.9], [0.2, 0.4, 0.8], [0.2, 0.3, 0.5], [0.2, 0.2, 0.1]]
    classes = [[3, 0, 1], [2, 0, 2], [2, 0, 2], [2, 0, 1]]
    return QueryUse.of_predictions(map(instances, scores, classes), threshold=0.5)


def test_use_by_hand(use):
    assert use.share().tolist() == [0.25, 0, 0.75]
    assert use.order() == [2, 0, 1]
    assert use.dead() == [1]
    assert use.most_frequent_class(0) == (3, 1)
    assert use.most_frequent_class(1) is None
    assert use.most_frequent_class(2) == (2, pytest.approx(2 / 3))
    expected = [[0.2, 0.2, 0.2, 0.2], [0.5, 0.5, 1, 1], [0.525, 0.75, 0.05, 0.5]]
    torch.testing.assert_close(use.boxes, torch.tensor([expected] * 4))


def test_equally_used_queries_are_sorted_by_their_scores():
    use = QueryUse.of_predictions([instances([0.3, 0.1, 0.2], [0, 0, 0])], threshold=0.5)
    assert use.order() == [0, 2, 1]


def test_colors_are_those_of_the_papers_figure():
    small, wide, tall, both = box_colors(np.array([[0.02, 0.02], [0.9, 0.1], [0.1, 0.9], [0.9, 0.9]]))
    assert small.argmax() == 1
    assert wide.argmax() == 0
    assert tall.argmax() == 2
    assert both.tolist() == [1, 0, 1]


def test_a_panel_has_its_points_where_the_boxes_are(use):
    """Query 0 is at (0.2, 0.2), query 1 at (0.5, 0.5), large both ways: purple, and the first is not."""
    picture = query_panels(use, [0, 1]).astype(int)
    panels = picture[: -int(0.55 * 110)]
    purple = np.argwhere((panels[..., 0] > 200) & (panels[..., 1] < 120) & (panels[..., 2] > 200))
    left = int((0.15 + 1.7 + 0.15) * 110)  # of the second panel
    assert len(purple) > 0
    assert purple[:, 1].mean() == pytest.approx(left + 0.5 * 1.7 * 110, abs=2)
    assert purple[:, 0].mean() == pytest.approx((0.28 + 0.5 * 1.7) * 110, abs=2)


def test_numbers_of_queries():
    assert parse_queries([], 5) is None
    assert parse_queries(["all"], 3) == [0, 1, 2]
    assert parse_queries(["4", "0"], 5) == [4, 0]
    for wrong in ("5", "-1", "x"):
        with pytest.raises(InputError, match=rf"there is no query {wrong}: name numbers from 0 to 4, or all"):
            parse_queries(["0", wrong], 5)


@pytest.fixture(scope="module")
def run(shapes_root, tmp_path_factory):
    """The folder of a training, whose last checkpoint is of a lively model."""
    folder = tmp_path_factory.mktemp("run")
    model = build_lively(QUICKSTART, TINY)
    DetrCheckpointer(model, str(folder)).save("model_final")
    (folder / "config.yaml").write_text(load_config(str(QUICKSTART), as_opts(TINY)).dump())
    return folder


def test_predictions_of_queries_are_all_those_of_the_model(run, tmp_path):
    """However low the score and whatever the batch; of evaluation's own, none is missing."""
    rng = np.random.default_rng(0)
    for i, size in enumerate([(90, 120), (64, 64), (90, 120)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    found = list(Predictor(str(run / "model_final.pth"), threshold=0.9, batch_size=2).predict_queries(paths))
    every = list(Predictor(str(run / "model_final.pth"), threshold=0).predict(paths))
    for ours, output in zip(found, every, strict=True):
        assert len(ours) == 20
        assert ours.image_size == output["instances"].image_size
        torch.testing.assert_close(ours.scores, output["instances"].scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.pred_boxes.tensor, output["instances"].pred_boxes.tensor, atol=1e-3, rtol=0)


def test_the_command_prints_a_table_and_draws(run, capsys):
    explore_queries.main(
        [str(run), "--limit", "3", "--queries", "5", "11", "--batch", "2", "--confidence-threshold", "0"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[:2] for line in lines[2:4]) == [["11", "100.0%"], ["5", "100.0%"]]
    assert "kept: a score of 0 or more; 20.0 of 20 queries an image" in lines
    assert "every query is kept in one of the 3 images at least" in lines
    assert lines[-1] == f"-> {run}/queries.png"
    with Image.open(run / "queries.png") as picture:
        assert picture.width > 300


def test_dead_queries_are_named(run, shapes_root, tmp_path, capsys):
    images, output = shapes_root / "shapes" / "val" / "*1.jpg", tmp_path / "new" / "q.png"
    model = str(run / "model_final.pth")
    explore_queries.main(
        ["--model", model, "--input", str(images), "--output", str(output), "--confidence-threshold", "1"]
    )
    printed = capsys.readouterr().out
    assert "dead, kept in none of the 2 images: 20 of 20: 0, 1, 2, 3," in printed
    assert printed.count("\n") == 2 + 20 + 3 + 1
    assert output.is_file()


def test_a_file_that_is_no_image_is_skipped(run, shapes_root, tmp_path, capsys):
    bad, output = tmp_path / "bad.jpg", ["--output", str(tmp_path / "q.png")]
    bad.write_text("no image")
    good = next((shapes_root / "shapes" / "val").iterdir())
    command = ["--model", str(run / "model_final.pth"), *output, "--input", str(bad)]
    assert explore_queries.main([*command, str(good)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"skipped: {bad} is no image")
    assert printed.out.endswith("q.png; 1 skipped\n")
    with pytest.raises(InputError, match="no image can be read"):
        explore_queries.main(command)


def test_wrong_input_is_one_line(run, tmp_path, capsys):
    for args, message in (
        ([], "name either RUN"),
        ([str(run), "--model", "m"], "name either RUN"),
        ([str(run), "--limit", "0"], "--limit must be at least 1"),
        ([str(run), "--output", "x.txt"], "--output x.txt is no picture"),
    ):
        with pytest.raises(SystemExit):
            explore_queries.main(args)
        assert capsys.readouterr().err.startswith(f"error: {message}")
    with pytest.raises(InputError, match=r"no folder of a finished training \(model_best\.pth and model_final\.pth"):
        explore_queries.main([str(tmp_path)])
    with pytest.raises(InputError, match=r"no DATASETS\.TEST: name images with --dataset or --input"):
        explore_queries.main(["--model", str(run / "model_final.pth")])
    with pytest.raises(InputError, match="there is no query 20"):
        explore_queries.main([str(run), "--queries", "20"])
