"""A checkpoint is written before every evaluation, since that may fail."""

from pathlib import Path

import pytest

from tests.engine.test_dry_run import run, trainer_with

pytestmark = pytest.mark.usefixtures("writers_are_closed")


@pytest.mark.parametrize(("period", "left"), [(2, "model_0000001.pth"), (0, "model_final.pth")])
def test_an_evaluation_that_fails_leaves_a_checkpoint_to_go_on_from(shapes_root, run_config, period, left):
    """In the training, or at its end; after a dry run that went through."""
    cfg = run_config({"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 100, "TEST.EVAL_PERIOD": period})
    trainer, _ = trainer_with(fails_in="process", working=1)
    with pytest.raises(RuntimeError, match="the user's evaluator fails"):
        run(trainer(cfg))
    folder = Path(cfg.OUTPUT_DIR)
    assert [path.name for path in folder.glob("*.pth")] == [left]
    assert (folder / "last_checkpoint").read_text() == left
    trainer, _ = trainer_with()
    results, losses = run(trainer(cfg), resume=True)
    assert results == {"own": {"images": 16}}
    assert len(losses) == (2 if period else 0)
    assert (folder / "model_final.pth").exists()


def test_a_checkpoint_before_an_evaluation_counts_as_a_periodic_one(shapes_root, run_config):
    trainer, _ = trainer_with()
    cfg = run_config({"SOLVER.MAX_ITER": 10, "SOLVER.CHECKPOINT_PERIOD": 4, "TEST.EVAL_PERIOD": 3,
                      "SOLVER.CHECKPOINTS_KEPT": 3})  # fmt: skip
    run(trainer(cfg))
    left = {path.name for path in Path(cfg.OUTPUT_DIR).glob("*.pth")}
    assert left == {"model_0000005.pth", "model_0000007.pth", "model_0000008.pth", "model_final.pth"}
