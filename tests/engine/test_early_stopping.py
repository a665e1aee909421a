"""Trainings that end before their schedule does."""

import datetime
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import Checkpointer
from detectron2.engine import HookBase, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine import defaults as detectron2_defaults
from detectron2.utils import comm

from detr.data.shapes import ensure_shapes
from detr.engine.defaults import load_config
from detr.engine.early_stopping import EarlyStopping, StoppableLoop
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.conftest import QUICKSTART, SHORT, TINY, as_opts

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
    assert saved(cfg)["trainer"]["hooks"]["EarlyStopping"] == {"best": 5.0, "best_iteration": 2, "not_better": 3}


def test_values_that_are_not_finite_are_not_better(shapes_root, run_config):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 2})
    trainer, recorder, _ = trainer_with(cfg, [float("nan"), float("nan")])
    trainer.train()
    assert recorder.seen[0] == 4


def test_without_the_metric_the_training_goes_on_with_a_warning(shapes_root, run_config, caplog):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 1, "SOLVER.MAX_ITER": 8})
    trainer, recorder, _ = trainer_with(cfg, [None] * 4)
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


def train_on_a_rank(rank: int, folder: str) -> None:
    """Writes how far a rank came, in a training that stops and then in its resumption with more patience."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    comm.create_local_process_group(2)
    ensure_shapes(Path(os.environ["DETECTRON2_DATASETS"]), train_images=48, val_images=16)
    # Detectron2 asks for the rank's GPU.
    detectron2_defaults.create_ddp_model = lambda model, **options: create_ddp_model(model, **options, device_ids=None)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    settings = {**TINY, **SHORT, **EARLY, "OUTPUT_DIR": f"{folder}/run", "DATALOADER.NUM_WORKERS": 0}
    steps = []
    for patience in (2, 3):
        cfg = load_config(str(QUICKSTART), as_opts({**settings, "SOLVER.PATIENCE": patience}))
        trainer, recorder, _ = trainer_with(cfg, [5.0, 4.0, 3.0] if patience == 2 else [4.0])
        trainer.resume_or_load(resume=patience == 3)
        trainer.train()
        steps.append(recorder.seen)
    Path(folder, f"rank_{rank}.json").write_text(json.dumps(steps))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_stop_together(tmp_path):
    (tmp_path / "run").mkdir()
    torch.multiprocessing.spawn(train_on_a_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1] == [[6, 6, 6], [8, 8, 8]]
