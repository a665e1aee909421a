"""The average of the weights (EMA): what is evaluated, saved, resumed and exported."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch import nn

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.source import read
from detr.engine.trainer import Trainer
from detr.engine.weight_average import WeightAverage
from detr.errors import InputError
from tests.conftest import TRAINING_QUERIES

EMA = {"SOLVER.EMA_DECAY": 0.5, "SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.DRY_RUN": False,
       "TEST.EVAL_PERIOD": 2, "DATALOADER.NUM_WORKERS": 0, "SOLVER.BASE_LR": 0.01}  # fmt: skip
pytestmark = pytest.mark.usefixtures("writers_are_closed")


def weights(model):
    return {name: x.clone() for name, x in model.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and not [name for name in a if not torch.equal(a[name], b[name])]


def trainer_with(cfg, fail=False):
    """A Trainer, and the weights that its evaluations see and those that its steps leave."""
    evaluated, left = [], []

    class Watched(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            evaluated.append(weights(model))
            if fail:
                raise RuntimeError("the evaluator fails")
            return {"bbox": {"AP": float(len(evaluated))}}

        def run_step(self):
            super().run_step()
            left.append(weights(self.model))

    return Watched(cfg), evaluated, left


def run(cfg, resume=False):
    trainer, evaluated, left = trainer_with(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer, evaluated, left


def saved(cfg, name):
    return torch.load(f"{cfg.OUTPUT_DIR}/{name}.pth", weights_only=True)


def test_the_average_by_hand():
    """Of what is trained; a frozen parameter and a buffer are the model's."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
    model[1].requires_grad_(False)
    average = WeightAverage(model, decay=0.75)
    nn.init.constant_(model[0].weight, 8.0)
    nn.init.constant_(model[1].weight, 3.0)
    average.start()
    for value in (4.0, 0.0):  # 0.75 * 8 + 0.25 * 4 = 7; 0.75 * 7 = 5.25
        nn.init.constant_(model[0].weight, value)
        average.update()
    nn.init.constant_(model[1].weight, 2.0)
    model[2].running_mean.fill_(5.0)
    state = average.state_dict()
    assert [float(state[f"{i}.weight"]) for i in (0, 1)] == [5.25, 2.0]
    assert float(state["2.running_mean"]) == 5.0
    with average.applied():
        assert model[0].weight.item() == 5.25
    assert model[0].weight.item() == 0.0
    again = WeightAverage(model, decay=0.75)
    again.load_state_dict(state)
    assert equal(again.state_dict(), state)


def test_it_is_evaluated_and_saved_and_the_weights_come_back(shapes_root, run_config):
    cfg = run_config(EMA)
    trainer, evaluated, left = run(cfg)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trained
    for name in trained:  # the second evaluation's, from the first one's
        expected = evaluated[0][name].lerp(left[2][name], 0.5).lerp(left[3][name], 0.5)
        torch.testing.assert_close(evaluated[1][name], expected)
        assert not torch.equal(evaluated[1][name], left[3][name]) or torch.equal(left[0][name], left[3][name])
    assert equal(weights(trainer.model), left[3])
    for name, (evaluation, step) in {"model_0000001": (0, 1), "model_final": (1, 3), "model_best": (1, 3)}.items():
        assert equal(saved(cfg, name)["model"], left[step])
        assert equal(saved(cfg, name)["model_ema"], evaluated[evaluation])


def test_the_training_is_the_same_without_it(shapes_root, run_config):
    steps = []
    for decay in (0.0, 0.5):
        seed_all_rng(3)
        steps.append(run(run_config({**EMA, "SOLVER.EMA_DECAY": decay}))[2])
    assert all(equal(a, b) for a, b in zip(*steps, strict=True))


def test_what_takes_which_weights(shapes_root, run_config):
    cfg = run_config({**EMA, "SOLVER.MAX_ITER": 2})
    _, (averaged,), left = run(cfg)
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    for options, expected in {"": averaged, "?weights=ema": averaged, "?weights=model": left[-1]}.items():
        model = build_model(cfg)
        DetrCheckpointer(model).load(path + options)
        assert equal(weights(model), expected)
    assert equal(read(path).state, averaged)  # the converter's
    cfg.MODEL.WEIGHTS = path
    trainer, *_ = trainer_with(cfg)
    trainer.resume_or_load(resume=False)  # a fine-tuning begins with the average, and a new one
    assert equal(weights(trainer.model), averaged)
    assert equal(trainer.weight_average.state_dict(), averaged)
    trainer.checkpointer.load(path)  # with the optimizer's state: the weights that it belongs to
    assert equal(weights(trainer.model), left[-1])
    assert equal(trainer.weight_average.state_dict(), averaged)


def test_a_training_that_is_resumed_has_the_average_to_the_bit(shapes_root, run_config):
    cfg = run_config({**EMA, **TRAINING_QUERIES, "SOLVER.MAX_ITER": 2, "MODEL.RESNETS.NORM": "BN"})
    _, evaluated, left = run(cfg)
    trainer, *_ = trainer_with(cfg)
    trainer.resume_or_load(resume=True)
    trainer.weight_average.start()
    assert equal(weights(trainer.model), left[-1])
    assert equal(trainer.weight_average.state_dict(), evaluated[-1])


def test_the_weights_come_back_after_an_evaluation_that_fails(shapes_root, run_config):
    trainer, evaluated, left = trainer_with(run_config(EMA), fail=True)
    with pytest.raises(RuntimeError, match="the evaluator fails"):
        trainer.train()
    assert equal(weights(trainer.model), left[-1])
    assert not equal(evaluated[-1], left[-1])


def test_without_an_average_in_the_checkpoint_it_starts_from_the_weights(shapes_root, run_config):
    cfg = run_config({**EMA, "SOLVER.EMA_DECAY": 0.0})
    run(cfg)
    assert "model_ema" not in saved(cfg, "model_final")
    cfg.SOLVER.EMA_DECAY = 0.5
    trainer, *_ = trainer_with(cfg)
    trainer.resume_or_load(resume=True)
    trainer.weight_average.start()
    assert equal(trainer.weight_average.state_dict(), weights(trainer.model))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_cannot_be_is_one_line(decay, run_config):
    with pytest.raises(InputError, match=rf"SOLVER\.EMA_DECAY is {decay}: it must be at least 0"):
        Trainer(run_config({"SOLVER.EMA_DECAY": decay}))
