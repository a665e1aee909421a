"""The evaluation of one image before training, by two processes together."""

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
from detr.engine.dry_run import evaluate_one_image
from detr.engine.trainer import Trainer
from tests.conftest import QUICKSTART, TINY, as_opts
from tests.evaluation.test_evaluators import PANOPTIC


def evaluate_on_a_rank(rank: int, folder: str) -> None:
    """Writes the results of a rank, without an image on the second rank and then with one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    comm.create_local_process_group(2)
    ensure_shapes(Path(os.environ["DETECTRON2_DATASETS"]), train_images=48, val_images=16)
    seen = []

    class OnTwoRanks(Trainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            images = [[x] for x, *_ in super().build_test_loader(cfg, dataset_name)]
            return [] if rank and not cfg.MODEL.MASK_ON else images

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            evaluator = super().build_evaluator(cfg, dataset_name)
            evaluate = evaluator.evaluate

            def recorded():
                result = evaluate()
                seen.append((cfg.OUTPUT_DIR, sorted(result or {})))
                return result

            evaluator.evaluate = recorded
            return evaluator

    for settings in ({}, PANOPTIC):
        cfg = load_config(str(QUICKSTART), as_opts({**TINY, **settings}))
        evaluate_one_image(OnTwoRanks, cfg, build_model(cfg))
    assert not any(os.path.exists(path) for path, _ in seen)
    Path(folder, f"rank_{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_evaluate_together_and_one_may_have_no_image(tmp_path):
    torch.multiprocessing.spawn(evaluate_on_a_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2)]
    assert [tasks for _, tasks in ranks[0]] == [["bbox"], ["bbox", "panoptic_seg", "segm"]]
    assert [tasks for _, tasks in ranks[1]] == [[], []]
    assert [path for path, _ in ranks[0]] == [path for path, _ in ranks[1]]
