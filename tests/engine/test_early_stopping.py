"""Trainings that end before their schedule does."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.utils import comm

from detr.engine.early_stopping import EarlyStopping, StoppableLoop
from detr.engine.trainer import Trainer
from detr.errors import InputError

EARLY = {"SOLVER.MAX_ITER": 20, "TEST.EVAL_PERIOD": 2, "TEST.DRY_RUN": False, "SOLVER.CHECKPOINT_PERIOD": 100}


class Recorder(HookBase):
    """What a hook of the user's own sees at the end."""

    def after_train(self):
        self.seen = self.trainer.iter, self.trainer.max_iter, self.trainer.storage.iter


def trainer_with(cfg, results):
    """A Trainer whose evaluations have these results, and a list of those that have not been asked for."""
    left = list(results)

    class Evaluated(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            value = left.pop(0)
            return {"bbox": {"AP": value} if value is not None else {"AP50": 1.0}} if comm.is_main_process() else {}

    trainer = Evaluated(cfg)
    recorder = Recorder()
    trainer.register_hooks([recorder])
    return trainer, recorder, left


def saved(cfg, name="model_final"):
    return torch.load(f"{cfg.OUTPUT_DIR}/{name}.pth", weights_only=True)


def test_a_training_ends_when_patience_does(shapes_root, run_config, caplog):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 2, "TEST.EXPECTED_RESULTS": [["bbox", "AP", 50.0, 0.1]]})
    trainer, recorder, left = trainer_with(cfg, [40.0, 50.0, 45.0, 50.0, "never asked for"])
    assert trainer.train() == {"bbox": {"AP": 50.0}}
    assert left == ["never asked for"]
    assert recorder.seen == (8, 8, 8)
    assert (saved(cfg)["iteration"], saved(cfg, "model_best")["iteration"]) == (7, 3)
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_final.pth"
    assert saved(cfg)["trainer"]["hooks"]["EarlyStopping"]["not_better"] == 2
    lines = map(json.loads, Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines())
    assert [(x["iteration"], x["bbox/AP"]) for x in lines if "bbox/AP" in x] == [(1, 40), (3, 50), (5, 45), (7, 50)]
    assert (
        "the training stops early, after iteration 8 of 20: bbox/AP has not been above the 50.00 of iteration 4 in 2 "
        "evaluations (SOLVER.PATIENCE)" in caplog.text
    )


def test_expected_results_are_verified_after_an_early_end(shapes_root, run_config):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 1, "TEST.EXPECTED_RESULTS": [["bbox", "AP", 50.0, 0.1]]})
    with pytest.raises(SystemExit):
        trainer_with(cfg, [40.0, 39.0])[0].train()


def test_a_better_value_renews_patience_and_the_schedule_ends_as_usual(shapes_root, run_config):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 2, "SOLVER.MAX_ITER": 10})
    trainer, recorder, left = trainer_with(cfg, [3.0, 2.0, 4.0, 3.0, 1.0])
    assert trainer.train() == {"bbox": {"AP": 1.0}}
    assert left == []
    assert recorder.seen == (10, 10, 10)
    assert saved(cfg)["iteration"] == 9


def test_a_stopped_training_takes_no_step_when_it_is_resumed(shapes_root, run_config, caplog):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 2})
    trainer_with(cfg, [5.0, 4.0, 3.0])[0].train()
    weights = saved(cfg)["model"]
    trainer, recorder, left = trainer_with(cfg, [3.0])
    trainer.resume_or_load(resume=True)
    assert trainer.train() == {"bbox": {"AP": 3.0}}
    assert left == []
    assert recorder.seen == (6, 6, 6)
    assert "this training had stopped early after iteration 6" in caplog.text
    assert "set SOLVER.PATIENCE above 2, or to 0" in caplog.text
    assert all(torch.equal(value, weights[name]) for name, value in saved(cfg)["model"].items())


def test_more_patience_goes_on_with_what_is_left_of_it(shapes_root, run_config):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 2})
    trainer_with(cfg, [5.0, 4.0, 3.0])[0].train()
    cfg.SOLVER.PATIENCE = 3
    trainer, recorder, _ = trainer_with(cfg, [5.0])
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert recorder.seen == (8, 8, 8)
    assert saved(cfg)["trainer"]["hooks"]["EarlyStopping"] == {
        "best": 5.0,
        "best_iteration": 2,
        "not_better": 3,
        "metric": "bbox/AP",
    }


def test_values_that_are_not_finite_are_not_better(shapes_root, run_config):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 2})
    trainer, recorder, _ = trainer_with(cfg, [float("nan"), float("nan")])
    trainer.train()
    assert recorder.seen[0] == 4


def test_without_the_metric_the_training_goes_on_with_a_warning(shapes_root, run_config, caplog):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 1, "SOLVER.MAX_ITER": 8})
    trainer, recorder, _ = trainer_with(cfg, [5.0, None, None, None])
    trainer.train()
    assert recorder.seen[0] == 8
    assert caplog.text.count("the training cannot stop early (SOLVER.PATIENCE): no evaluation gives bbox/AP") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SOLVER.PATIENCE": -1}, "SOLVER.PATIENCE is -1: it must be a number of evaluations"),
        ({"SOLVER.PATIENCE": 3, "TEST.EVAL_PERIOD": 0}, "set TEST.EVAL_EPOCHS or EVAL_PERIOD"),
        ({"SOLVER.PATIENCE": 3, "DATASETS.TEST": ()}, "name a validation set in DATASETS.TEST"),
    ],
)
def test_patience_that_cannot_work_is_an_error(shapes_root, run_config, settings, message):
    with pytest.raises(InputError, match=message):
        Trainer(run_config({**EARLY, **settings}))


def own_loop(bases, folder, patience):
    """A loop without cfg, whose evaluations count down from 9."""
    model = torch.nn.Linear(2, 1)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return {"loss": self.inner(x).mean()}

    class Loop(*bases):
        pass

    loop = Loop(Model(), [torch.ones(1, 2)] * 100, torch.optim.SGD(model.parameters(), lr=0.1))
    values = iter(range(9, 0, -1))
    loop.register_hooks(
        [
            hooks.EvalHook(3, lambda: {"score": next(values)}, eval_after_train=False),
            EarlyStopping(patience=patience, period=3, metric="score", checkpointer=Checkpointer(model, folder)),
        ]
    )
    return loop


def test_a_loop_of_ones_own_stops(tmp_path):
    loop = own_loop((StoppableLoop, SimpleTrainer), str(tmp_path), patience=2)
    loop.train(0, 50)
    assert (loop.iter, loop.max_iter) == (9, 9)
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 8


def test_a_loop_that_cannot_stop_is_an_error(tmp_path):
    with pytest.raises(TypeError, match=r"derives from .*StoppableLoop"):
        own_loop((SimpleTrainer,), str(tmp_path), patience=2).train(0, 50)
