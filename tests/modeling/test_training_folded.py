"""What comes out of a training with denoising, groups and anchors is the plain Detr, at any time."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch.optim.swa_utils import AveragedModel

from detr.checkpoint.rows import TRAINING_PREFIX
from detr.engine.solver import build_optimizer
from detr.modeling.criterion import SetCriterion
from detr.modeling.meta_arch import Detr
from tests.modeling.training_parts import (
    OFF,
    PARTS,
    build_pair,
    make_batch,
    plain_state,
    step,
    training_outputs,
)

MASKS = {"MODEL.MASK_ON": True}
SETTINGS = {
    "boxes": {},
    "masks": MASKS,
    "bfloat16": {"MODEL.DETR.INFERENCE_DTYPE": "bfloat16"},
    "pre-norm": {"MODEL.DETR.PRE_NORM": True},
}


@torch.no_grad()
def predictions(model):
    """All that an evaluation gives for two images, of which the second is padded."""
    model.eval()
    inputs = make_batch((0, 0))
    outputs = model(inputs)
    raw = model.forward_network(model.preprocess(inputs), return_intermediate=True)
    fields = [value for output in outputs for value in output["instances"].get_fields().values()]
    tensors = [getattr(value, "tensor", value) for value in fields]
    assert len(outputs[0]["instances"]) == 20  # those of the object queries
    return [raw.logits, raw.boxes, *tensors]


def assert_identical(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def trained(tiny_config, settings, steps=3):
    """A model in the middle of its training."""
    _, model = build_pair(tiny_config, settings)
    optimizer = build_optimizer(tiny_config({"SOLVER.BASE_LR": 0.01, **settings}), model)
    for seed in range(steps):
        step(model, make_batch(masks=model.mask_head is not None), seed)
        optimizer.step()
    return model


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("part", PARTS)
def test_an_evaluation_in_training_computes_what_the_plain_model_computes(tiny_config, part, settings):
    """To the last bit: a plain model with the weights that are saved, and the model itself after folding."""
    settings = {**PARTS[part], **SETTINGS[settings]}
    model = trained(tiny_config, settings)
    before = predictions(model)
    plain = build_model(tiny_config({**settings, **OFF}))
    start = predictions(plain)
    plain.load_state_dict(plain_state(model))
    assert_identical(predictions(plain), before)
    assert not torch.equal(start[0], before[0])
    model.fold_queries()
    assert_identical(predictions(model), before)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())
    inputs = make_batch(masks=model.mask_head is not None)
    assert step(model.train(), inputs)[0] == step(plain.train(), inputs)[0]  # it trains on as the plain model does


def test_folding_thaws_nothing_that_was_frozen(tiny_config):
    _, model = build_pair(tiny_config, PARTS["groups"])
    model.query_embed.requires_grad_(False)
    model.fold_queries()
    assert not model.query_embed.weight.requires_grad


def test_loaded_rows_count_more_than_anchors(tiny_config):
    """An average of two trainings, name by name: the mean of the rows is not what the mean of the anchors gives."""
    model, other = (trained(tiny_config, PARTS["anchors"], steps) for steps in (1, 3))
    state, second = model.state_dict(), other.state_dict()
    mean = {key: (value + second[key]) / 2 if value.is_floating_point() else value for key, value in state.items()}
    model.load_state_dict(mean)
    torch.testing.assert_close(model.object_queries(), mean["query_embed.weight"])
    torch.testing.assert_close(model.eval().query_embed.weight, mean["query_embed.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_converted_training_is_saved(tiny_config, dtype):
    model = trained(tiny_config, PARTS["all"], steps=1)
    rows = model.state_dict()["query_embed.weight"].clone()
    found = model.to(dtype).state_dict()["query_embed.weight"]
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), rows, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("part", PARTS)
def test_evaluations_leave_the_training_as_it_is(tiny_config, part):
    """As do saving and copying the model."""
    _, model = build_pair(tiny_config, PARTS[part])
    expected = step(model, make_batch())
    other = copy.deepcopy(model)
    predictions(model)
    plain_state(model)
    losses, gradients = step(model.train(), make_batch())
    assert losses.keys() == expected[0].keys()
    assert gradients.keys() == expected[1].keys()
    for name, gradient in step(other, make_batch())[1].items():
        torch.testing.assert_close(gradient, expected[1][name], msg=name)
        torch.testing.assert_close(gradients[name], expected[1][name], msg=name)


@pytest.mark.parametrize("part", PARTS)
def test_plain_weights_start_a_training(tiny_config, part):
    """Evaluation and the object queries in training are those of the plain model, released weights included."""
    plain, _ = build_pair(tiny_config, PARTS[part])
    model = copy.deepcopy(trained(tiny_config, PARTS[part]))  # nothing of what it was may be left
    assert not torch.equal(model.object_queries(), plain.object_queries())
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith(TRAINING_PREFIX) for name in missing)
    assert not unexpected
    with torch.no_grad():
        torch.testing.assert_close(model.object_queries(), plain.object_queries(), rtol=0, atol=1e-5)
        expected, found = (training_outputs(x.train(), make_batch()) for x in (plain, model))
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(predictions(model)[:2], predictions(plain)[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", PARTS)
def test_a_trainings_own_weights_are_loaded_as_they_are(tiny_config, part):
    model = trained(tiny_config, PARTS[part])
    other = build_model(tiny_config(PARTS[part]))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    other.load_state_dict(state)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    assert_identical(predictions(other), predictions(model))


@pytest.mark.parametrize("part", PARTS)
def test_copies_and_averages_of_a_training_evaluate(tiny_config, part):
    model = trained(tiny_config, PARTS[part])
    average = AveragedModel(model)
    average.update_parameters(model)
    assert_identical(predictions(copy.deepcopy(model)), predictions(model))
    assert_identical(predictions(average.module), predictions(model))  # of one model
    step(model.train(), make_batch())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01)
    average.update_parameters(model)
    found = predictions(average.module)
    plain = build_model(tiny_config({**PARTS[part], **OFF}))
    saved = {key.removeprefix("module."): value for key, value in average.state_dict().items() if key != "n_averaged"}
    plain.load_state_dict({key: value for key, value in saved.items() if not key.startswith(TRAINING_PREFIX)})
    assert_identical(predictions(plain), found)


class OldSignatures(Detr):
    """Knows nothing of queries for training alone."""

    def forward_network(self, images, return_intermediate):
        return super().forward_network(images, return_intermediate)

    def forward_heads(self, features, key_padding_mask, return_intermediate):
        return super().forward_heads(features, key_padding_mask, return_intermediate)

    def losses(self, outputs, targets):
        return {name: 2 * loss for name, loss in super().losses(outputs, targets).items()}


class DoubleLosses(Detr):
    def losses(self, outputs, targets):
        logits, boxes, _ = outputs
        assert logits.shape[:3] == boxes.shape[:3] == (2, 2, 20)
        return {name: 2 * loss for name, loss in super().losses(outputs, targets).items()}


class OwnCriterion(SetCriterion):
    def classification_loss(self, logits, targets, matches):
        return 3 * super().classification_loss(logits, targets, matches)


def as_subclass(model, kind):
    other = copy.deepcopy(model)
    other.__class__ = kind
    return other


@pytest.mark.parametrize("part", PARTS)
def test_subclasses_with_losses_of_their_own(tiny_config, part):
    plain, model = build_pair(tiny_config, PARTS[part])
    for kind, base in ((OldSignatures, plain), (DoubleLosses, plain), (DoubleLosses, model)):
        expected, _ = step(base, make_batch())
        losses, _ = step(as_subclass(base, kind), make_batch())
        assert losses.keys() == expected.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(loss, 2 * expected[name], msg=name)


@pytest.mark.parametrize("part", PARTS)
def test_a_criterion_of_ones_own_counts_for_all_queries(tiny_config, part):
    _, model = build_pair(tiny_config, PARTS[part])
    expected, _ = step(model, make_batch())
    model.criterion.__class__ = OwnCriterion
    losses, _ = step(model, make_batch())
    for name, loss in losses.items():
        factor = 3 if name.startswith("loss_ce") else 1
        torch.testing.assert_close(loss, factor * expected[name], msg=name)
