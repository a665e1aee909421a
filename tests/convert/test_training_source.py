"""`converter.py` on the checkpoint of a training with queries of its own: the output is a plain DETR."""

import pytest
import torch
from detectron2.modeling import build_model

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.files import load_file
from tests.checkpoint.test_checkpointer import small_config
from tests.conftest import TRAINING_QUERIES
from tests.convert.conftest import run
from tests.lively import enliven, raw_outputs

MASKS = {"MODEL__MASK_ON": True, "MODEL__DETR__HIDDEN_DIM": 128}  # the least that the original's mask head takes
QUERIES = {key.replace(".", "__"): value for key, value in TRAINING_QUERIES.items()}


@pytest.fixture
def training(tmp_path):
    """training(settings): a lively model, and the path of its checkpoint."""

    def make(settings):
        torch.manual_seed(0)
        model = enliven(build_model(small_config(**settings, **QUERIES)))
        DetrCheckpointer(model, str(tmp_path)).save("training", iteration=7)
        return model, str(tmp_path / "training.pth")

    return make


def assert_is(path, model, settings):
    plain = build_model(small_config(**settings))
    checkpointer = DetrCheckpointer(plain)
    checkpointer.load(str(path))
    assert checkpointer.reinitialized == []
    for x, y in zip(*map(raw_outputs, (plain, model)), strict=True):
        assert torch.equal(x, y)
    return plain


@pytest.mark.parametrize("settings", [{}, pytest.param(MASKS, marks=pytest.mark.slow)], ids=["boxes", "masks"])
@pytest.mark.parametrize("to", ["detectron2", "original", "transformers"])
def test_the_output_is_the_plain_model(to, settings, training, output, capsys):
    model, path = training(settings)
    run(path, output, "--to", to, "--verify")
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "training_queries" in line]
    assert "keys like training_queries." in line
    assert "logits differ by at most" in out
    plain = assert_is(output, model, settings)
    if to == "detectron2":
        written = load_file(output)
        assert written["model"].keys() == plain.state_dict().keys()
        assert "iteration" not in written


@pytest.mark.parametrize("choice", ["model", "ema"])
def test_the_weights_or_their_average(choice, training, tmp_path, output):
    first, _ = training({})
    second, _ = training({})
    with torch.no_grad():
        second.training_queries.anchors.add_(1)
    average = {f"module.{key}": value for key, value in second.state_dict().items()}
    torch.save({"model": first.state_dict(), "ema": average}, tmp_path / "both.pth")
    run(f"{tmp_path}/both.pth?weights={choice}", output, "--verify")
    expected, other = (first, second) if choice == "model" else (second, first)
    assert_is(output, expected, {})
    assert not torch.equal(raw_outputs(expected)[0], raw_outputs(other)[0])


def test_other_numbers_of_classes_and_queries(training, output):
    model, path = training({})
    run(path, output, "--num-classes", 3, "--num-queries", 4)
    written = load_file(output)["model"]
    assert torch.equal(written["query_embed.weight"], model.state_dict()["query_embed.weight"][:4])
    assert len(written["class_embed.bias"]) == 4
    assert not [key for key in written if "training_queries" in key]
