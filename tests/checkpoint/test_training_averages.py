"""Checkpoints of a training with queries of its own that hold two models: an average beside, or a teacher inside."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.optim.swa_utils import AveragedModel

from detr.checkpoint import DetrCheckpointer
from tests.checkpoint.test_nested import ARCHITECTURE
from tests.checkpoint.test_wrappers import below
from tests.conftest import QUICKSTART, TINY, TRAINING_QUERIES
from tests.lively import build_lively, raw_outputs


@pytest.mark.parametrize("queries", [{}, TRAINING_QUERIES], ids=["plain", "training"])
@pytest.mark.parametrize("options", ["", "?weights=ema", "?weights=model"])
def test_weights_and_average_of_a_training(options, queries, tiny_config, tmp_path):
    """Into a plain model and into that of the training."""
    first, second = (build_lively(QUICKSTART, {**TINY, **TRAINING_QUERIES}) for _ in range(2))
    with torch.no_grad():
        second.training_queries.anchors.add_(1)
    torch.save({"model": first.state_dict(), "model_ema": below("module.", second.state_dict())}, tmp_path / "both.pth")
    model = build_model(tiny_config(queries))
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(f"{tmp_path}/both.pth{options}")
    assert checkpointer.reinitialized == []
    expected, other = (first, second) if options.endswith("model") else (second, first)
    for x, y, z in zip(*map(raw_outputs, (model, expected, other)), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)


def test_an_averaged_training_is_that_of_its_anchors(tiny_config, tmp_path):
    """torch averages parameters; the queries of the plain model follow from them when it is saved."""
    model = build_lively(QUICKSTART, {**TINY, **TRAINING_QUERIES})
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    with torch.no_grad():
        model.training_queries.anchors.add_(1)
    averaged.update_parameters(model)
    torch.save(averaged.state_dict(), tmp_path / "averaged.pth")
    plain = build_model(tiny_config())
    DetrCheckpointer(plain).load(str(tmp_path / "averaged.pth"))
    for x, y, z in zip(*map(raw_outputs, (plain, averaged.module, model)), strict=True):
        assert torch.equal(x, y)
        assert not torch.equal(x, z)


@pytest.mark.parametrize("queries", [{}, TRAINING_QUERIES], ids=["plain", "training"])
@pytest.mark.parametrize("saved", [{}, TRAINING_QUERIES], ids=["from plain", "from a training"])
def test_a_teacher_inside_is_loaded_too(saved, queries, tiny_config, tmp_path):
    """It has queries of its own for training."""
    teacher = {ARCHITECTURE: "DetrWithTeacher"}
    trained = build_lively(QUICKSTART, {**TINY, **teacher, **saved})
    DetrCheckpointer(trained, str(tmp_path)).save("trained")
    model = build_model(tiny_config({**teacher, **queries}))
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(str(tmp_path / "trained.pth"))
    assert checkpointer.reinitialized == []
    for own, expected in ((model, trained), (model.teacher, trained.teacher)):
        for x, y in zip(raw_outputs(own), raw_outputs(expected), strict=True):
            torch.testing.assert_close(x, y, atol=5e-5, rtol=1e-5)


def test_what_a_teacher_lacks_is_its_own_loss(tiny_config, tmp_path):
    """A plain model's queries are the student's, even where the weights hold no teacher."""
    plain = build_lively(QUICKSTART, TINY)
    DetrCheckpointer(plain, str(tmp_path)).save("plain")
    model = build_model(tiny_config({ARCHITECTURE: "DetrWithTeacher", **TRAINING_QUERIES}))
    before = raw_outputs(model.teacher)
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(str(tmp_path / "plain.pth"))
    (line,) = checkpointer.reinitialized
    assert line.startswith("teacher is re-initialized")
    for x, y in zip(raw_outputs(model), raw_outputs(plain), strict=True):
        torch.testing.assert_close(x, y, atol=5e-5, rtol=1e-5)
    assert all(torch.equal(x, y) for x, y in zip(raw_outputs(model.teacher), before, strict=True))
