"""A plain loop that goes on from its checkpoint, and what does not fit: refused before anything has changed."""

import logging

import pytest
import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage
from torch import nn

from detr.checkpoint import DetrCheckpointer
from detr.engine.solver import build_optimizer
from detr.errors import InputError
from tests.conftest import TRAINING_QUERIES, make_input

INPUTS = [make_input([[10, 10, 60, 60]], [1])]
CLASSES, QUERIES = "MODEL.DETR.NUM_CLASSES", "MODEL.DETR.NUM_OBJECT_QUERIES"


class Loop:
    """Detectron2's plain_train_net.py: everything in one checkpointer."""

    def __init__(self, cfg, optimizer=None):
        self.model = build_model(cfg).train()
        self.optimizer = optimizer(self.model) if optimizer else build_optimizer(cfg, self.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        self.checkpointer = DetrCheckpointer(
            self.model, cfg.OUTPUT_DIR, optimizer=self.optimizer, scheduler=self.scheduler
        )

    def step(self):
        with EventStorage():
            losses = sum(self.model(INPUTS).values())
        self.optimizer.zero_grad()
        losses.backward()
        self.optimizer.step()
        self.scheduler.step()

    def resume(self):
        return self.checkpointer.resume_or_load("", resume=True)


@pytest.fixture
def saved(run_config):
    """saved(settings): a loop with one step behind it, saved; its checkpoint's path."""

    def train(settings=None, optimizer=None):
        cfg = run_config(settings)
        loop = Loop(cfg, optimizer)
        loop.step()
        loop.checkpointer.save("model_0000000", iteration=1)
        return f"{cfg.OUTPUT_DIR}/model_0000000.pth"

    return train


def changed(path, change):
    """Changes the content of a checkpoint in place."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def refused(loop, message):
    """Resuming is an error in one line, and neither the model nor the optimizer is touched."""
    before = {key: value.clone() for key, value in loop.model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        loop.resume()
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in loop.model.state_dict().items())
    assert not loop.optimizer.state
    return str(error.value)


def test_a_loop_goes_on(saved, run_config, caplog):
    path = saved()
    loop = Loop(run_config())
    loaded = loop.resume()
    assert loaded.keys() == {"iteration", "detr"}
    assert (loaded["iteration"], loaded["detr"]["heads"]) == (1, 4)
    expected = torch.load(path, weights_only=True)
    assert all(torch.equal(value, expected["model"][key]) for key, value in loop.model.state_dict().items())
    assert {int(state["step"]) for state in loop.optimizer.state.values()} == {1}
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    loop.step()


def test_other_rows_are_named_with_both_values(saved, run_config):
    path = saved()
    message = refused(
        Loop(run_config({CLASSES: 5, QUERIES: 30})),
        rf"{CLASSES} is 5 here and 4 in the .*, {QUERIES} is 30 here and 20",
    )
    assert message.startswith(f"cannot resume from {path}: ")
    assert f"set it back, or start anew from its weights: without --resume, with MODEL.WEIGHTS {path} and" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({CLASSES: 3}, f"{CLASSES} is 3 here and 4"),
        ({QUERIES: 10}, f"{QUERIES} is 10 here and 20"),
        ({"MODEL.DETR.ENC_LAYERS": 2}, r"MODEL\.DETR\.ENC_LAYERS is 2 here and 1"),
        ({"MODEL.DETR.DEC_LAYERS": 1}, r"MODEL\.DETR\.DEC_LAYERS is 1 here and 2"),
        ({"MODEL.DETR.HIDDEN_DIM": 64}, r"MODEL\.DETR\.HIDDEN_DIM is 64 here and 32"),
        ({"MODEL.DETR.DIM_FEEDFORWARD": 64}, r"MODEL\.DETR\.DIM_FEEDFORWARD is 64 here and 32"),
        ({"MODEL.DETR.PRE_NORM": True}, r"MODEL\.DETR\.PRE_NORM is True here and False"),
        ({"MODEL.DETR.POSITION_EMBEDDING": "learned"}, r"POSITION_EMBEDDING is learned here and sine"),
        ({"MODEL.MASK_ON": True}, r"MODEL\.MASK_ON is True here and False"),
        ({"MODEL.DETR.ANCHOR_QUERIES": True}, r"MODEL\.DETR\.ANCHOR_QUERIES is True here and False"),
        ({"MODEL.DETR.DENOISING.ENABLED": True}, r"MODEL\.DETR\.DENOISING\.ENABLED is True here and False"),
        ({"MODEL.DETR.QUERY_GROUPS": 2}, r"MODEL\.DETR\.QUERY_GROUPS is 2 here and 1"),
        ({"MODEL.RESNETS.STEM_OUT_CHANNELS": 24}, r"MODEL\.RESNETS\.STEM_OUT_CHANNELS is 24 here and 16"),
        ({"SOLVER.OPTIMIZER": "SGD"}, r"SOLVER\.OPTIMIZER is SGD here and ADAMW"),
        ({"MODEL.BACKBONE.FREEZE_AT": 2}, r"trains \d+ parameters and this one \d+: MODEL\.BACKBONE\.FREEZE_AT was 0"),
        ({"SOLVER.BACKBONE_MULTIPLIER": 1.0}, r"has 2 groups of parameters .*SOLVER\.BACKBONE_MULTIPLIER"),
    ],
    ids=str,
)
def test_another_config_is_refused(saved, run_config, settings, message):
    saved()
    refused(Loop(run_config(settings)), message)


@pytest.mark.parametrize(
    ("key", "value"),
    [("MODEL.DETR.ANCHOR_QUERIES", False), ("MODEL.DETR.DENOISING.ENABLED", False), ("MODEL.DETR.QUERY_GROUPS", 1),
     ("MODEL.DETR.QUERY_GROUPS", 2)],
)  # fmt: skip
def test_other_queries_of_a_training_are_named(key, value, saved, run_config):
    """One of them changed, the others alike."""
    saved(TRAINING_QUERIES)
    settings = {**TRAINING_QUERIES, key: value}
    message = refused(Loop(run_config(settings)), rf"{key} is {value} here and {TRAINING_QUERIES[key]} in the checkp")
    assert message.count(" here and ") == 1
    Loop(run_config(TRAINING_QUERIES)).resume()
    Loop(run_config({**TRAINING_QUERIES, "MODEL.DETR.DENOISING.COPIES": 1})).resume()  # no tensor shows it


def test_a_frozen_box_model_is_named(saved, run_config):
    masks = {"MODEL.MASK_ON": True, "MODEL.DETR.FREEZE_DETR": True}
    cfg = run_config(masks)
    DetrCheckpointer(build_model(cfg), cfg.OUTPUT_DIR, optimizer=Loop(cfg).optimizer).save("first")
    refused(Loop(run_config({"MODEL.MASK_ON": True})), r"MODEL\.DETR\.FREEZE_DETR was True")
    DetrCheckpointer(
        build_model(cfg), cfg.OUTPUT_DIR, optimizer=Loop(run_config({"MODEL.MASK_ON": True})).optimizer
    ).save("second")
    refused(Loop(run_config(masks)), r"MODEL\.DETR\.FREEZE_DETR was False")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content.pop("optimizer"),
            "holds no optimizer's state, as a file of weights alone; st",
        ),
        (lambda content: content["optimizer"].pop("state"), "its optimizer's state is incomplete"),
        (lambda content: content["optimizer"]["state"].clear(), "state is empty, as if no step had been taken"),
        (lambda content: content["optimizer"]["state"][0].pop("exp_avg"), "incomplete: .* has no exp_avg"),
        (lambda content: content["model"].pop("input_proj.bias"), r"it does not hold input_proj\.bias"),
        (lambda content: content["model"].update({"head.bias": torch.ones(1)}), r"does not have head\.bias"),
        (
            lambda content: content["optimizer"]["param_groups"][0]["params"].reverse(),
            "another order: exp_avg of .* is .* here",
        ),
    ],
    ids=["no optimizer", "no state", "empty state", "no moment", "missing key", "extra key", "order"],
)
def test_a_damaged_checkpoint_is_refused(saved, run_config, change, message):
    changed(saved(), change)
    refused(Loop(run_config()), message)


def test_settings_that_the_checkpoint_replaces_are_warned_of(saved, run_config, caplog):
    saved()
    settings = {"SOLVER.BASE_LR": 0.5, "SOLVER.WEIGHT_DECAY": 0.25, "SOLVER.BACKBONE_MULTIPLIER": 0.1}
    loop = Loop(run_config(settings))
    loop.resume()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert line == (
        "resuming goes on with the checkpoint's settings, not the config's: SOLVER.BASE_LR 0.001, not 0.5; "
        "SOLVER.WEIGHT_DECAY 0.0001, not 0.25; SOLVER.BACKBONE_MULTIPLIER 2.0, not 0.1"
    )
    assert loop.optimizer.param_groups[0]["weight_decay"] == 0.0001


def test_an_optimizer_of_the_users_own(saved, run_config):
    """Its states may have any shape; another kind is refused."""

    def adafactor(model):
        return torch.optim.Adafactor(model.parameters())

    saved(optimizer=adafactor)
    loop = Loop(run_config(), adafactor)
    loop.resume()
    loop.step()
    refused(Loop(run_config(), lambda model: torch.optim.Rprop(model.parameters())), "another kind: it has no")


def test_weights_alone_leave_the_optimizer_as_it_is(saved, run_config):
    """What is loaded and not resumed may be another model's."""
    path = saved()
    loop = Loop(run_config({QUERIES: 30}))
    loop.checkpointer.resume_or_load(path, resume=False)
    assert not loop.optimizer.state
    with pytest.raises(InputError, match=f"{QUERIES} is 30 here and 20"):
        loop.checkpointer.load(path)
    changed(path, lambda content: [content.pop(key) for key in ("optimizer", "scheduler")])
    loop.checkpointer.load(path)  # as Detectron2: restores what the file holds
    loop.step()


@pytest.mark.filterwarnings("ignore:.*GradScaler")
def test_mixed_precision_needs_its_scaler(run_config):
    cfg = run_config()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    DetrCheckpointer(model, cfg.OUTPUT_DIR, trainer=SimpleTrainer(model, [], optimizer)).save("model")
    amp = AMPTrainer(model, [], optimizer)
    with pytest.raises(InputError, match=r"SOLVER\.AMP is float16 here, and was off or .* checkpoint; set it back"):
        DetrCheckpointer(model, cfg.OUTPUT_DIR, trainer=amp).resume_or_load("")
