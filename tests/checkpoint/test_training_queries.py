"""Checkpoints of a training with queries of its own: into a plain DETR, and from one. The outputs stay the same."""

import logging

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.rows import TRAINING_PREFIX
from detr.errors import InputError
from tests.checkpoint.samples import as_wrapper, small_original
from tests.checkpoint.test_checkpointer import small_config
from tests.checkpoint.test_resume import CLASSES, QUERIES, Loop, changed
from tests.conftest import QUICKSTART, TINY, TRAINING_QUERIES
from tests.lively import build_lively, raw_outputs

ANCHORS, DENOISING, GROUPS = "MODEL.DETR.ANCHOR_QUERIES", "MODEL.DETR.DENOISING.ENABLED", "MODEL.DETR.QUERY_GROUPS"
PARTS = [{ANCHORS: True}, {DENOISING: True}, {GROUPS: 2}, TRAINING_QUERIES]
IDS = ["anchors", "denoising", "groups", "all"]


@pytest.fixture
def training(tmp_path):
    """training(settings): a lively model with all the queries of a training, or these, and its checkpoint's path."""

    def make(settings=TRAINING_QUERIES):
        model = build_lively(QUICKSTART, {**TINY, **settings})
        DetrCheckpointer(model, str(tmp_path)).save("training", iteration=7)
        return model, str(tmp_path / "training.pth")

    return make


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def assert_close(found, expected):
    """To the rounding of the queries, which lively weights amplify."""
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, atol=5e-5, rtol=1e-5)


def load(cfg, path, caplog):
    """The model with these weights, and its checkpointer; ``caplog`` has the lines of this load alone."""
    model = build_model(cfg)
    caplog.clear()
    caplog.set_level(logging.INFO)
    checkpointer = DetrCheckpointer(model)
    loaded = checkpointer.load(path)
    return model, checkpointer, loaded


def with_underscores(settings):
    return {key.replace(".", "__"): value for key, value in settings.items()}


def lines(caplog, *words):
    found = [record.getMessage() for record in caplog.records]
    return [line for line in found if any(word in line for word in words)]


def training_keys(state):
    return {key for key in state if key.startswith(TRAINING_PREFIX)}


def listed(model):
    keys = training_keys(model.state_dict())
    return min(keys) if len(keys) == 1 else f"{len(keys)} tensors like {min(keys)}"


@pytest.mark.parametrize("settings", PARTS, ids=IDS)
def test_a_training_loads_into_a_plain_model(settings, training, tiny_config, caplog):
    trained, path = training(settings)
    expected = raw_outputs(trained)
    model, checkpointer, loaded = load(tiny_config(), path, caplog)
    assert_equal(raw_outputs(model), expected)
    assert loaded["iteration"] == 7
    assert checkpointer.reinitialized == []
    (line,) = lines(caplog, "left out", "re-initialized", "not in this model")
    assert line.endswith(listed(trained))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("settings", PARTS, ids=IDS)
def test_plain_torch_loads_it_too(settings, training, tiny_config):
    trained, path = training(settings)
    model = build_model(tiny_config())
    state = torch.load(path, weights_only=True)["model"]
    found = model.load_state_dict(state, strict=False)
    assert found.missing_keys == []
    assert set(found.unexpected_keys) == training_keys(state) != set()
    assert_equal(raw_outputs(model), raw_outputs(trained))
    plain = {key: value for key, value in state.items() if not key.startswith(TRAINING_PREFIX)}
    model.load_state_dict(plain)  # strictly: nothing else differs


@pytest.mark.parametrize("settings", [{}, TRAINING_QUERIES], ids=["plain config", "training config"])
def test_detectron2s_own_predictor(settings, training, tiny_config, image):
    trained, path = training()
    predictor = DefaultPredictor(tiny_config({**settings, "MODEL.WEIGHTS": path}))
    assert (predictor.model.training_queries is None) == (not settings)
    found, expected = (raw_outputs(model) for model in (predictor.model, trained))
    assert_equal(found, expected)
    assert len(predictor(image)["instances"]) > 0


@pytest.mark.parametrize("settings", PARTS, ids=IDS)
def test_it_loads_its_own_checkpoint_to_the_last_bit(settings, training, tiny_config, caplog):
    trained, path = training(settings)
    model, checkpointer, _ = load(tiny_config(settings), path, caplog)
    assert checkpointer.reinitialized == []
    state = trained.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert_equal(raw_outputs(model), raw_outputs(trained))
    assert lines(caplog, "left out", "re-initialized") == []


@pytest.mark.parametrize("settings", PARTS, ids=IDS)
def test_a_plain_model_starts_a_training(settings, training, tiny_config, caplog):
    plain, path = training({})
    model, checkpointer, _ = load(tiny_config(settings), path, caplog)
    assert_close(raw_outputs(model), raw_outputs(plain))
    torch.testing.assert_close(model.state_dict()["query_embed.weight"], plain.query_embed.weight.detach())
    assert checkpointer.reinitialized == []  # so that --eval-only takes it
    (line,) = lines(caplog, "left out", "re-initialized")
    assert listed(model) in line
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_plain_torch_starts_a_training_too(training, tiny_config):
    plain, path = training({})
    model = build_model(tiny_config(TRAINING_QUERIES))
    found = model.load_state_dict(torch.load(path, weights_only=True)["model"], strict=False)
    assert set(found.missing_keys) == training_keys(model.state_dict())
    assert_close(raw_outputs(model), raw_outputs(plain))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small model in the formats of the authors' code and of their wrapper."""
    folder = tmp_path_factory.mktemp("released")
    state = small_original(hidden_dim=64, num_queries=10)
    torch.save({"model": state}, folder / "original.pth")
    torch.save({"model": as_wrapper(state)}, folder / "wrapper.pth")
    return folder


@pytest.mark.parametrize("settings", PARTS, ids=IDS)
@pytest.mark.parametrize("name", ["original", "wrapper"])
def test_released_weights_start_a_training(name, settings, released, caplog):
    path = str(released / f"{name}.pth")
    plain, _, _ = load(small_config(), path, caplog)
    model, checkpointer, _ = load(small_config(**with_underscores(settings)), path, caplog)
    assert checkpointer.reinitialized == []
    assert_close(raw_outputs(model), raw_outputs(plain))
    assert len(lines(caplog, "re-initialized")) == 1


def test_a_backbone_alone_starts_a_training(training, tiny_config, tmp_path, caplog):
    """What the weights do not hold is the model's own: anchors and their offsets stay as they were drawn."""
    plain, _ = training({})
    backbone = {key: value for key, value in plain.state_dict().items() if key.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    torch.manual_seed(0)
    expected = {key: value.clone() for key, value in build_model(tiny_config(TRAINING_QUERIES)).state_dict().items()}
    torch.manual_seed(0)
    model, checkpointer, _ = load(tiny_config(TRAINING_QUERIES), str(tmp_path / "backbone.pth"), caplog)
    assert "query_embed is re-initialized: the weights hold none of its 1 tensors" in checkpointer.reinitialized
    for key, value in model.state_dict().items():
        assert torch.equal(value, (backbone if key in backbone else expected)[key]), key


@pytest.mark.parametrize(("settings", "value"), [({CLASSES: 3}, "4 wanted"), ({QUERIES: 12}, "12 wanted"),
                                                 ({QUERIES: 30}, "30 wanted")])  # fmt: skip
@pytest.mark.parametrize("saved", [{}, TRAINING_QUERIES], ids=["from plain", "from a training"])
def test_other_classes_and_queries(settings, value, saved, training, tiny_config, caplog):
    trained, path = training(saved)
    model, checkpointer, _ = load(tiny_config({**TRAINING_QUERIES, **settings}), path, caplog)
    (line,) = checkpointer.reinitialized
    assert value in line
    found, rows = (x.state_dict()["query_embed.weight"] for x in (model, trained))
    shared = min(len(found), len(rows))
    torch.testing.assert_close(found[:shared], rows[:shared])
    torch.testing.assert_close(model.object_queries()[:shared], trained.object_queries()[:shared])


@pytest.mark.parametrize(
    ("saved", "settings"),
    [
        (TRAINING_QUERIES, {**TRAINING_QUERIES, GROUPS: 2}),
        ({GROUPS: 3}, {GROUPS: 2}),
        (TRAINING_QUERIES, {DENOISING: True}),
        (TRAINING_QUERIES, {GROUPS: 3}),
        ({DENOISING: True}, TRAINING_QUERIES),
        ({ANCHORS: True}, {GROUPS: 3}),
    ],
    ids=str,
)
def test_other_queries_of_a_training(saved, settings, training, tiny_config, caplog):
    trained, path = training(saved)
    model, checkpointer, _ = load(tiny_config(settings), path, caplog)
    assert_close(raw_outputs(model), raw_outputs(trained))
    assert checkpointer.reinitialized == []
    assert len(lines(caplog, "left out", "re-initialized")) <= 2


def test_of_more_than_is_wanted_the_rest_is_kept(training, tiny_config, caplog):
    """A training of anchors and denoising that goes on with denoising alone."""
    trained, path = training()
    model, _, _ = load(tiny_config({DENOISING: True}), path, caplog)
    for name in ("label_embed.weight", "box_embed.layers.0.weight"):
        key = f"{TRAINING_PREFIX}{name}"
        assert torch.equal(model.state_dict()[key], trained.state_dict()[key])
    (line,) = lines(caplog, "left out", "re-initialized")
    assert f"2 tensors like {TRAINING_PREFIX}anchors" in line


def test_a_folded_model_is_saved_as_a_plain_one(training, tiny_config, tmp_path):
    trained, _ = training()
    before = raw_outputs(trained)
    with torch.no_grad():
        trained.training_queries.anchors.add_(1)  # as by a step after it was saved
    expected = raw_outputs(trained)
    assert not torch.equal(expected[0], before[0])
    trained.fold_queries()
    assert trained.query_embed.weight.requires_grad
    assert_equal(raw_outputs(trained), expected)
    DetrCheckpointer(trained, str(tmp_path)).save("folded")
    model = build_model(tiny_config())
    model.load_state_dict(torch.load(tmp_path / "folded.pth", weights_only=True)["model"])
    assert_equal(raw_outputs(model), expected)


@pytest.mark.parametrize("saved", [{}, TRAINING_QUERIES], ids=["from plain", "from a training"])
def test_no_remedy_names_what_is_for_training_alone(saved, tmp_path):
    """Only what weights and config cannot differ in."""
    DetrCheckpointer(build_model(small_config(**with_underscores(saved))), str(tmp_path)).save("model")
    for wanted in ({}, TRAINING_QUERIES):
        model = build_model(small_config(**with_underscores(wanted), MODEL__DETR__DIM_FEEDFORWARD=128))
        with pytest.raises(InputError, match=r"set MODEL\.DETR\.DIM_FEEDFORWARD 64$"):
            DetrCheckpointer(model).load(str(tmp_path / "model.pth"))


@pytest.mark.parametrize("settings", PARTS, ids=IDS)
def test_a_resumed_training_is_the_same_to_the_last_bit(settings, run_config):
    """With the noise of the same seed in each step."""

    def steps(loop, first, last):
        for i in range(first, last):
            torch.manual_seed(i)
            loop.step()

    torch.manual_seed(0)
    cfg = run_config({**settings, "SOLVER.MAX_ITER": 6})
    loop, again = Loop(cfg), Loop(cfg)
    steps(loop, 0, 2)
    loop.checkpointer.save("model", iteration=1)
    steps(loop, 2, 4)
    assert again.resume()["iteration"] == 1
    steps(again, 2, 4)
    state = loop.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())
    first, second = (x.optimizer.state_dict()["state"] for x in (loop, again))
    assert all(torch.equal(first[i][name], second[i][name]) for i in first for name in first[i])


def test_a_training_of_an_earlier_version_resumes(run_config):
    """Its config has no such keys, and its checkpoint no such tensors; a line names what differs where some are set."""
    loop = Loop(run_config())
    loop.step()
    loop.checkpointer.save("model", iteration=1)
    changed(loop.checkpointer.get_checkpoint_file(), lambda content: content.pop("detr"))
    assert Loop(run_config()).resume()["iteration"] == 1
    with pytest.raises(InputError, match=rf"{ANCHORS} is True here and False in the checkpoint; set it back"):
        Loop(run_config({ANCHORS: True})).resume()
