"""Two processes: they stop together, share the loss on a test set, and the main one watches its health."""

import datetime
import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm

from detr.data.shapes import ensure_shapes
from detr.engine.defaults import load_config
from detr.engine.matching_statistics import IOU, LAYERS, NO_OBJECT
from detr.engine.validation_loss import validation_losses
from tests.conftest import QUICKSTART, SHORT, TINY, as_opts
from tests.engine.test_early_stopping import EARLY, trainer_with
from tests.engine.test_validation_loss import MASKS, images, one_by_one


def losses(wrap, shares):
    """The losses of a model with masks, for each of the shares of batches."""
    torch.manual_seed(0)
    model = build_model(load_config(str(QUICKSTART), as_opts({**TINY, **MASKS})))
    return [validation_losses(wrap(model), {"set": share}) for share in shares]


def train(folder: str) -> tuple[list[tuple[int, int, int]], list[dict[str, float]]]:
    """How far a training comes that stops, and then its resumption with more patience; the last health of each."""
    settings = {**TINY, **SHORT, **EARLY, "OUTPUT_DIR": f"{folder}/run", "DATALOADER.NUM_WORKERS": 0}
    steps, health = [], []
    for patience, values in ((2, [5.0, 4.0, 3.0]), (3, [4.0])):
        cfg = load_config(str(QUICKSTART), as_opts({**settings, "SOLVER.PATIENCE": patience, "TEST.LOSS": True}))
        trainer, recorder, _ = trainer_with(cfg, values)
        trainer.resume_or_load(resume=patience == 3)
        trainer.train()
        steps.append(recorder.seen)
        latest = trainer.storage.latest_with_smoothing_hint(20)  # as metrics.json has it
        health.append({name: value for name, (value, _) in latest.items() if name.startswith("health/")})
    return steps, health


def run_a_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    comm.create_local_process_group(2)
    ensure_shapes(Path(os.environ["DETECTRON2_DATASETS"]), train_images=48, val_images=16)
    batches = one_by_one(images(masks=True))
    shares = (batches[:2], batches[2:])[rank], (batches, [])[rank]  # of different lengths, and of none
    steps, health = train(folder)
    results = {"losses": losses(torch.nn.parallel.DistributedDataParallel, shares), "steps": steps, "health": health}
    Path(folder, f"rank_{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_stop_together_share_the_loss_and_watch_their_health(tmp_path):
    (tmp_path / "run").mkdir()
    torch.multiprocessing.spawn(run_a_rank, args=(str(tmp_path),), nprocs=2)
    main, other = (json.loads((tmp_path / f"rank_{rank}.json").read_text())["health"] for rank in range(2))
    assert [x.keys() >= {NO_OBJECT, IOU, LAYERS} for x in main] == [True, True]
    assert other == [{}, {}]
    lines = map(json.loads, (tmp_path / "run" / "metrics.json").read_text().splitlines())
    assert [x[IOU] for x in lines if IOU in x][-1] == main[-1][IOU]
    (expected,) = losses(lambda model: model, [one_by_one(images(masks=True))])
    for rank in range(2):
        results = json.loads((tmp_path / f"rank_{rank}.json").read_text())
        assert results["steps"] == [[6, 6, 6], [8, 8, 8]]
        for found in results["losses"]:
            assert found == pytest.approx(expected, rel=1e-4)
