"""Trainings that fail, and what they leave on disk."""

from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase, default_argument_parser
from detectron2.modeling import build_model

import train_net
from detr import Detr
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.conftest import QUICKSTART, ROOT, SHORT, TINY, as_opts


def test_a_diverged_training_names_the_losses(shapes_root, run_config):
    class Broken(Detr):
        def losses(self, outputs, targets):
            found = super().losses(outputs, targets)
            return {**found, "loss_giou": found["loss_giou"] * float("nan"), "loss_ce": found["loss_ce"] / 0}

    class Diverging(Trainer):
        @classmethod
        def build_model(cls, cfg):
            return Broken(cfg)

    with pytest.raises(FloatingPointError, match=r"iteration 0 .*not finite: loss_ce, loss_giou\)") as error:
        Diverging(run_config()).train()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_training_that_asks_for_cuda_is_refused_with_an_estimate(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml"
    opts = as_opts({"OUTPUT_DIR": tmp_path / "out", "MODEL.WEIGHTS": ""})
    with pytest.raises(InputError, match=r"about [\d.]+ s on this CPU, .* days\. .*set MODEL\.DEVICE cpu"):
        train_net.main(default_argument_parser().parse_args(["--config-file", str(config), *opts]))
    assert not (tmp_path / "out").exists()


def test_the_last_checkpoints_the_best_and_the_milestones_stay(shapes_root, run_config):
    cfg = run_config({"SOLVER.MAX_ITER": 12, "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.EVAL_PERIOD": 6})
    cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINTS_KEPT = (3,), 2
    folder = Path(cfg.OUTPUT_DIR)
    trainer = Trainer(cfg)
    trainer.train()
    left = {path.name for path in folder.glob("*.pth")}
    assert left == {"model_0000002.pth", "model_0000009.pth", "model_0000011.pth", "model_best.pth", "model_final.pth"}

    cfg.SOLVER.MAX_ITER = 16
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 12
    trainer.train()
    left = {path.name for path in folder.glob("*.pth")}
    assert left == {"model_0000002.pth", "model_0000013.pth", "model_0000015.pth", "model_best.pth", "model_final.pth"}


def test_best_is_kept_over_a_resumed_training(shapes_root, run_config, monkeypatch):
    cfg = run_config({"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.EVAL_PERIOD": 2})
    results = iter([50.0, 40.0, 45.0, 45.0])
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model, evaluators=None: _ap(next(results))))
    Trainer(cfg).train()
    best = torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)
    assert best["iteration"] == 1
    cfg.SOLVER.MAX_ITER = 6
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)["iteration"] == 1


class Crash(HookBase):
    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise RuntimeError("crashed")


def test_the_best_value_survives_a_crash_after_it_was_saved(shapes_root, run_config, monkeypatch):
    cfg = run_config({"SOLVER.MAX_ITER": 6, "SOLVER.CHECKPOINT_PERIOD": 100, "TEST.EVAL_PERIOD": 2})
    results = iter([10.0, 20.0, 15.0])
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model, evaluators=None: _ap(next(results))))
    trainer = Trainer(cfg)
    trainer.register_hooks([Crash(iteration=4)])
    with pytest.raises(RuntimeError, match="crashed"):
        trainer.train()
    resumed = Trainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    resumed.train()
    assert torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)["iteration"] == 3


def test_a_final_checkpoint_that_is_best_is_copied(shapes_root, run_config, monkeypatch):
    cfg = run_config({"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2, "TEST.EVAL_PERIOD": 2})
    results = iter([50.0, 60.0])
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model, evaluators=None: _ap(next(results))))
    Trainer(cfg).train()
    folder = Path(cfg.OUTPUT_DIR)
    assert (folder / "model_best.pth").read_bytes() == (folder / "model_final.pth").read_bytes()
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def _ap(value):
    return {"bbox": {"AP": value}}


def test_expected_results_are_verified_in_an_evaluation(shapes_root, run_config, tmp_path):
    cfg = run_config()
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "weights.pth")
    settings = {**TINY, **SHORT, "MODEL.WEIGHTS": tmp_path / "weights.pth", "OUTPUT_DIR": tmp_path / "out"}

    def evaluate(expected):
        opts = as_opts({**settings, "TEST.EXPECTED_RESULTS": [["bbox", "AP", expected, 1.0]]})
        return train_net.main(
            default_argument_parser().parse_args(["--config-file", str(QUICKSTART), "--eval-only", *opts])
        )

    found = evaluate(0.0)["bbox"]["AP"]  # a model that was never trained
    assert found == pytest.approx(0, abs=1)
    with pytest.raises(SystemExit) as end:
        evaluate(99.0)
    assert end.value.code == 1
