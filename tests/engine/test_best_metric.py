"""TEST.BEST_METRIC: the metric of the best checkpoint and of early stopping."""

from pathlib import Path

import pytest
import torch

from detr.engine.progress import metric_name
from detr.engine.trainer import Trainer
from detr.errors import InputError
from detr.evaluation.best_metric import best_metric, check_measured, is_better

EARLY = {"SOLVER.MAX_ITER": 20, "TEST.EVAL_PERIOD": 2, "TEST.DRY_RUN": False, "SOLVER.CHECKPOINT_PERIOD": 100,
         "DATALOADER.NUM_WORKERS": 0}  # fmt: skip
pytestmark = pytest.mark.usefixtures("writers_are_closed")


class Evaluated(Trainer):
    """AP rises, AP50 falls."""

    values: list[float]

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        value = cls.values.pop(0)
        return {"bbox": {"AP": 100 - value, "AP50": value}, "own": {"count_error": -value}}


def stop(cfg, values):
    """The iterations of the last state and of the best one."""
    Evaluated.values = list(values)
    trainer = Evaluated(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    files = (Path(cfg.OUTPUT_DIR, f"{name}.pth") for name in ("model_final", "model_best"))
    return [torch.load(file, weights_only=True)["iteration"] + 1 for file in files]


@pytest.mark.parametrize(("metric", "best"), [("bbox/AP50", 4), ("own/count_error", 4), ("bbox/AP", 2), ("", 2)])
def test_the_best_checkpoint_and_patience_go_by_it(metric, best, shapes_root, run_config):
    cfg = run_config({**EARLY, "TEST.BEST_METRIC": metric, "SOLVER.PATIENCE": 2})
    assert stop(cfg, [1, 3, 2, 2, 2, 2]) == [best + 4, best]


def test_of_a_loss_less_is_better(shapes_root, run_config, caplog):
    """Without learning the loss stays as it was, which is not better."""
    settings = {"TEST.BEST_METRIC": "val_loss", "TEST.LOSS": True, "SOLVER.PATIENCE": 1}
    settings |= {"SOLVER.BASE_LR": 1e-20, "MODEL.RESNETS.NORM": "FrozenBN"}
    assert stop(run_config({**EARLY, **settings}), [1, 2, 3]) == [4, 2]
    assert "val_loss has not been below the" in caplog.text


def test_another_metric_does_not_go_on_from_the_best_value_of_the_one_before(shapes_root, run_config):
    cfg = run_config({**EARLY, "SOLVER.MAX_ITER": 4, "SOLVER.PATIENCE": 9})
    assert stop(cfg, [1, 1]) == [4, 2]
    cfg.TEST.BEST_METRIC, cfg.SOLVER.MAX_ITER = "bbox/AP50", 8
    Evaluated.values = [0.5, 1.0, 2.0]  # the first of the evaluation after the checkpoint, which is made again
    trainer = Evaluated(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert torch.load(f"{cfg.OUTPUT_DIR}/model_best.pth", weights_only=True)["iteration"] + 1 == 8


def test_values_are_compared_by_the_name_of_their_metric():
    assert is_better("bbox/AP", 2.0, 1.0)
    assert not is_better("bbox/AP", 1.0, 1.0)
    assert is_better("my_loss_set/bbox/AP", 2.0, 1.0)
    assert is_better("bbox/AP-hair_loss", 2.0, 1.0)
    assert is_better("bbox/AP-glossy", 2.0, 1.0)
    assert is_better("val_loss_ce", 1.0, 2.0)
    assert not is_better("val_loss", float("nan"), None)


def test_an_unknown_metric_is_noticed_in_the_dry_run(shapes_root, run_config):
    cfg = run_config({"TEST.BEST_METRIC": "bbox/AP05"})
    trainer = Trainer(cfg)
    with pytest.raises(InputError, match=r"bbox/AP05, which no evaluation gives: it gives bbox/AP, bbox/AP-"):
        trainer.train()


def test_what_one_image_cannot_give_is_not_refused(tiny_config):
    names = {"bbox/AP", "bbox/AP50"}
    for metric in ("", "bbox/AP50", "panoptic_seg/SQ", "val_loss", "class_error"):
        check_measured(tiny_config({"TEST.BEST_METRIC": metric, "TEST.LOSS": True}), names)
    with pytest.raises(InputError, match="box/AP, which no evaluation gives"):
        check_measured(tiny_config({"TEST.BEST_METRIC": "box/AP"}), names)


def test_without_a_dry_run_the_first_evaluation_names_what_there_is(shapes_root, run_config, caplog):
    cfg = run_config({**EARLY, "SOLVER.MAX_ITER": 4, "TEST.BEST_METRIC": "bbox/AP05"})
    Evaluated.values = [1.0, 2.0]
    Evaluated(cfg).train()
    assert "no bbox/AP05 (TEST.BEST_METRIC). There are bbox/AP, bbox/AP50" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"TEST.BEST_METRIC": "val_loss"}, "which is not computed: set TEST.LOSS True"),
        (
            {"TEST.BEST_METRIC": "bbox/AP", "DATASETS.TEST": ("shapes_val", "shapes_train")},
            "put the one that counts in front, as in shapes_val/bbox/AP",
        ),
    ],
)
def test_a_metric_that_cannot_be_is_one_line(settings, message, run_config):
    with pytest.raises(InputError, match=message):
        Trainer(run_config(settings))


def test_its_name_in_the_progress(tiny_config):
    assert best_metric(tiny_config()) == "bbox/AP"
    assert metric_name("bbox/AP50") == "box AP50"
    assert metric_name("my_val/val_loss") == "my_val/val_loss"
    assert metric_name("val_loss") == "val_loss"
