"""The health hook in trainings, healthy and broken ones."""

import copy
import logging
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from detr import Detr
from detr.engine import health_checks
from detr.engine.health import HealthHook, MatchingObserver
from detr.engine.matching_statistics import DEAD, EPOCHS, IOU, LAYERS, NO_OBJECT, Sums
from detr.engine.trainer import Trainer
from detr.modeling.matcher import Targets
from tests.conftest import TRAINING_QUERIES, make_input, with_masks
from tests.fake_cuda import fake_cuda, move_to_cuda
from tests.modeling.cuda_cases import TRAINING

EVERY_STEP = {NO_OBJECT, IOU, LAYERS}
BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0]]


def metrics_of(trainer):
    return {name for name in trainer.storage.latest() if name.startswith("health/")}


def train(cfg, steps=None):
    """A trainer after its training; steps: between two checks"""
    seed_all_rng(1)
    cfg.DATASETS.TEST = ()  # an evaluation would take most of the time
    trainer = Trainer(cfg)
    for hook in trainer._hooks:
        if isinstance(hook, HealthHook):
            hook.steps = steps
    trainer.train()
    return trainer


def test_a_training_stays_the_same_to_the_last_bit(shapes_root, run_config):
    results = []
    for on in (True, False):
        trainer = train(run_config({"LOGGING.HEALTH": on, "SOLVER.MAX_ITER": 3}))
        losses = {k: h.values() for k, h in trainer.storage.histories().items() if "loss" in k}
        state = {name: x.clone() for name, x in trainer.model.state_dict().items()}
        results.append((losses, state, torch.get_rng_state()))
        assert metrics_of(trainer) == (EVERY_STEP if on else set())
        assert not trainer.model._forward_pre_hooks  # it no longer listens
        assert not trainer.model.criterion._forward_hooks
    (losses, state, rng), (plain_losses, plain_state, plain_rng) = results
    assert losses == plain_losses
    assert torch.equal(rng, plain_rng)
    assert all(torch.equal(x, plain_state[name]) for name, x in state.items())


def test_an_epoch_later_objects_are_known_again(shapes_root, run_config):
    trainer = train(run_config({"SOLVER.MAX_ITER": 14, "INPUT.RANDOM_FLIP": "none"}))  # of 12 steps an epoch
    assert metrics_of(trainer) == EVERY_STEP | {EPOCHS}
    assert {i for _, i in trainer.storage.history(EPOCHS).values()} <= set(range(11, 14))


def test_where_there_is_nothing_to_watch_it_does_nothing(shapes_root, run_config):
    assert metrics_of(train(run_config({"MODEL.MASK_ON": True, "MODEL.DETR.FREEZE_DETR": True}))) == set()
    hook = HealthHook(nn.Linear(2, 2))
    hook.trainer = None
    hook.before_train()
    hook.after_step()
    hook.after_train()
    with pytest.raises(ValueError, match="no Detr in a Linear"):
        MatchingObserver(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "settings",
    [
        {"MODEL.MASK_ON": True, **TRAINING_QUERIES},
        {"MODEL.DETR.ACTIVATION_CHECKPOINT": ("transformer",)},
        {"MODEL.DETR.DEEP_SUPERVISION": False},
    ],
    ids=["masks, denoising, groups, anchors", "checkpointing", "one layer"],
)
def test_of_any_model_the_kept_queries_count(settings, tiny_config):
    torch.manual_seed(0)
    model = build_model(tiny_config(settings)).train()
    observer = MatchingObserver(nn.Sequential(model))  # wrapped, as in DistributedDataParallel
    inputs = [with_masks(make_input(BOXES, [1, 3])) for _ in range(2)]
    sum(model(inputs).values()).backward()
    metrics = observer.step()
    assert metrics.keys() == EVERY_STEP - (set() if model.deep_supervision else {LAYERS})
    assert all(0 <= value <= 1 for value in metrics.values())
    assert observer.statistics.sums.matched == 4  # of one group, without denoising
    model.eval()
    model.evaluation_losses(inputs)
    assert observer.step() == {}  # an evaluation is no training
    observer.close()
    model.train()(inputs)
    assert observer.step() == {}


class OwnCriterion(nn.Module):
    """Returns something else than ``SetCriterion``."""

    def forward(self, logits, boxes, targets):
        return {"loss": logits.mean() + boxes.mean()}


def test_subclasses_and_criteria_of_the_users_own(tiny_config):
    class Doubled(Detr):
        def losses(self, outputs, targets):
            losses, _ = self.criterion(boxes=outputs.boxes, logits=outputs.logits, targets=targets)
            return losses

    inputs = [make_input(BOXES, [1, 3])]
    model = Doubled(tiny_config()).train()
    observer = MatchingObserver(model)
    model(inputs)
    assert observer.step().keys() == EVERY_STEP

    more = torch.randn(2, 1, 30, 5), torch.full((2, 1, 30, 4), 0.5)
    model.criterion(*more, Targets(torch.zeros(25, dtype=torch.int64), torch.full((25, 4), 0.5), [25]))
    assert observer.step() == {}  # of 30 queries, where the model has 20

    class Other(Detr):
        def losses(self, outputs, targets):
            return self.criterion(outputs.logits, outputs.boxes, targets)

    model = Other(tiny_config()).train()
    model.criterion = OwnCriterion()
    observer = MatchingObserver(model)
    model(inputs)
    assert observer.step() == {}
    copy.deepcopy(model)  # as an average of the weights is made


def test_the_device_is_not_waited_for(tiny_config):
    model = build_model(tiny_config()).train()
    with fake_cuda() as waits, EventStorage():
        move_to_cuda(model)
        observer = MatchingObserver(model)
        model([make_input(BOXES, [1, 3])] * 2)
        assert waits == TRAINING  # as without it
        observer.step()
        assert waits == TRAINING


# Outputs that are made by hand, through the real matcher and criterion.
IMAGES, QUERIES, CLASSES = 8, 20, 4


def outputs(generator, right=True, objects=True, query=None):
    """Logits and boxes of a model that has learned to find two objects of each image, and the targets.

    right: classes, else random ones; objects: whether any is predicted
    query: half the number of the first object's, random by default
    """
    labels = torch.randint(0, CLASSES, (2 * IMAGES,), generator=generator)
    truth = torch.tensor([[0.25, 0.5, 0.3, 0.3], [0.75, 0.5, 0.3, 0.3]]).repeat(IMAGES, 1)
    logits = torch.zeros(2, IMAGES, QUERIES, CLASSES + 1)
    logits[..., -1] = 5
    boxes = torch.tensor([0.5, 0.1, 0.05, 0.05]).expand(2, IMAGES, QUERIES, 4).clone()
    for i in range(2 * IMAGES):
        pair = int(torch.randint(0, QUERIES // 2, (), generator=generator)) if query is None else query
        place = slice(None), i // 2, 2 * pair + i % 2
        boxes[place] = truth[i] + 0.01
        named = labels[i] if right else torch.randint(0, CLASSES, (), generator=generator)
        if objects:
            logits[(*place, named)] = 10
    return logits, boxes, Targets(labels, truth, [2] * IMAGES)


@pytest.mark.parametrize(
    ("fault", "warned"),
    [
        ({"query": 3}, {"dead queries"}),  # healthy, but 18 of 20 queries do nothing
        ({"query": 3, "right": False}, {"classes", "dead queries"}),
        ({"query": 3, "objects": False}, {"no-object", "dead queries"}),
        ({}, {"stability"}),
    ],
    ids=["few queries at work", "wrong labels", "all no-object", "any query"],
)
def test_what_is_wrong_with_the_matching(fault, warned, tiny_config, caplog):
    model = Detr(tiny_config({"MODEL.DETR.NUM_OBJECT_QUERIES": QUERIES})).train()
    observer, generator = MatchingObserver(model), torch.Generator().manual_seed(0)
    for _ in range(130):  # more than 1000 images
        observer.names = [f"{i}.jpg" for i in range(IMAGES)]
        model.criterion(*outputs(generator, **fault))
        metrics = observer.step()
    assert metrics[NO_OBJECT] == (1 if not fault.get("objects", True) else 1 - 2 / QUERIES)
    assert metrics[DEAD] == (pytest.approx(0.9) if "query" in fault else 0)
    arguments = {"steps": 130, "losses": [], "dead": observer.statistics.dead_queries(), "learning_rate": 1e-4}
    sums = observer.statistics.take_sums()
    found = health_checks.health_warnings(sums, progress=0.5, **arguments)
    assert found.keys() == warned
    early = health_checks.health_warnings(sums, progress=0.1, **arguments)
    assert early.keys() == warned - {"dead queries", "stability"}


def sums_of(iou, right):
    """Of 100 matched objects; shares."""
    sums = Sums(QUERIES, CLASSES, objects=100, predicted=100, matched=100, named=100, right=round(100 * right))
    sums.iou = 100 * iou
    return sums


@pytest.mark.parametrize(
    ("losses", "model", "warned"),
    [
        ([10.0] * 100 + [10.1] * 400, (0.1, 0.1), "nothing is learned: total_loss was 10.00 at first and is 10.10"),
        ([10.0] * 100 + [10.1] * 400, (0.9, 0.1), "nothing is learned"),
        ([10.0] * 100 + [10.1] * 400, (0.9, 0.9), None),  # weights that were trained before
        ([10.0] * 100 + [9.0] * 400, (0.1, 0.1), None),
        ([10.0] * 100 + [13.0] * 400, (0.9, 0.9), "the loss has risen"),
        ([10.0] * 100 + [math.nan] * 400, (0.1, 0.1), "the loss has risen"),
        ([], (0.1, 0.1), None),  # a resumed training
    ],
)
def test_what_is_wrong_with_the_losses(losses, model, warned):
    arguments = {"steps": 200, "losses": losses, "dead": None, "progress": 0.1, "learning_rate": 0.5}
    found = health_checks.health_warnings(sums_of(*model), **arguments)
    assert found.keys() == ({"loss"} if warned else set())
    if warned:
        assert warned in found["loss"]
        assert "the learning rate is 0.5 now" in found["loss"]


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "text"), [(1e-9, "nothing is learned"), (0.1, "nearly all queries answer no-object")])
def test_a_learning_rate_that_cannot_work(rate, text, shapes_root, run_config, caplog):
    with caplog.at_level(logging.WARNING):
        train(run_config({"SOLVER.MAX_ITER": 40, "SOLVER.WARMUP_ITERS": 0, "SOLVER.BASE_LR": rate}), steps=20)
    warnings = [x.getMessage() for x in caplog.records if x.name == "detr.engine.health"]
    assert [text in x for x in warnings].count(True) == 1  # of two checks
    assert text in warnings[0]


def test_a_training_that_is_resumed_begins_anew(shapes_root, run_config):
    cfg = run_config({"SOLVER.MAX_ITER": 2})
    train(cfg)
    cfg.SOLVER.MAX_ITER = 4
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.start_iter == 2
    assert {i for _, i in trainer.storage.history(NO_OBJECT).values()} == {2, 3}
