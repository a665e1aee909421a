"""A training that is interrupted and resumed has the losses of the uninterrupted one, to the bit."""

import contextlib
import datetime
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import Sampler

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.shapes import ensure_shapes
from detr.engine.interruption import StoppedTraining
from detr.engine.trainer import Trainer
from tests.conftest import ROOT
from tests.engine.lives import LOSSES, SETTINGS, STEPS, Losses, config, lines, train
from tests.engine.test_early_stopping import EARLY, saved, trainer_with

SHORT = {"SOLVER.MAX_ITER": 5, "SOLVER.CHECKPOINT_PERIOD": 3, "TEST.EVAL_PERIOD": 0, "SOLVER.PATIENCE": 0}


class Killed(BaseException):
    """In place of SIGKILL: nothing that handles errors sees it."""


def killed_at(iteration, base=Trainer):
    class Mortal(base):
        def run_step(self):
            if self.iter == iteration:
                raise Killed
            super().run_step()

    return Mortal


def terminated_at(iteration, base=Trainer):
    class Stopped(base):
        def run_step(self):
            if self.iter == iteration:
                os.kill(os.getpid(), signal.SIGTERM)
            super().run_step()

    return Stopped


def interrupted(folder, settings, trainer=Trainer, then=None, ends=None):
    """The losses of a training, of one that ``ends``, and of its resumption: by default at 4, from iteration 3."""
    found, ends = [], ends or partial(killed_at, 4)
    for number, (name, changed) in enumerate((("whole", {}), ("parts", {}), ("parts", then or {}))):
        seed_all_rng(number // 2)  # a resumed training begins with other random numbers
        cfg = config(folder / name, {"DATASETS.TEST": "()", **SHORT, **settings, **changed})
        path = folder / f"{number}.jsonl"
        (folder / name).mkdir(exist_ok=True)
        with pytest.raises((Killed, StoppedTraining)) if number == 1 else contextlib.nullcontext():
            train(cfg, path, resume=number == 2, trainer=ends(trainer) if number == 1 else trainer)
        found.append(lines(path))
    return found


def check_equal(whole, parts, resumed):
    assert len(whole) == 5
    assert parts == whole[:4]
    assert resumed == whole[3:]


@pytest.mark.slow
def test_killed_twenty_times_it_has_the_losses_of_the_whole_training(tmp_path):
    """At random points and times, within the bytes of checkpoints and in evaluations; with and without workers."""
    seed = random.randrange(1 << 30)
    print("the points of death are those of the seed", seed)
    code = f"from tests.conftest import ROOT; from tests.engine import lives; lives.main({str(tmp_path)!r}, 20, {seed})"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    print(result.stdout[-20_000:])
    assert result.returncode == 0, result.stderr
    whole = lines(tmp_path / "whole" / LOSSES)
    assert [x["iteration"] for x in whole] == list(range(STEPS))
    runs = [lines(path) for path in tmp_path.glob(f"*/{LOSSES}")]
    assert sum(len(run) for run in runs[1:]) > STEPS
    for run in runs:
        assert {x["iteration"] for x in run} == set(range(STEPS))
        for earlier, later in itertools.pairwise(x["iteration"] for x in run):
            assert later > earlier - SETTINGS["SOLVER.CHECKPOINT_PERIOD"]  # no more is done again
        for line in run:
            assert line == whole[line["iteration"]]
    metrics = [json.loads(x) for x in (tmp_path / "0" / "metrics.json").read_text().splitlines()]
    assert {x["iteration"] for x in metrics if "bbox/AP" in x} >= set(range(7, STEPS - 1, 8))


class OwnSampler(Sampler):
    """Draws a seed where it is iterated, as torch's RandomSampler."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(int(torch.randint(1 << 30, ())))
        while True:
            yield int(torch.randint(40, (), generator=generator))


class WithOwnData(Trainer):
    """A sampler and a mapper of the user's own, which draws numbers of all kinds and drops images."""

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = DetrDatasetMapper(cfg, is_train=True)

        def own_mapper(x):
            if np.random.rand() < 0.3:
                return None
            x = mapper(x)
            x["image"] = x["image"] + torch.randint(9, (), dtype=torch.uint8) + random.randrange(9)
            return x

        return build_detection_train_loader(cfg, mapper=own_mapper, sampler=OwnSampler())


@pytest.mark.parametrize(
    ("settings", "trainer"),
    [
        ({"SEED": -1}, Trainer),  # the loader is built again with the checkpoint's seed
        ({"SEED": -1, "DATALOADER.NUM_WORKERS": 2, "DATALOADER.ASPECT_RATIO_GROUPING": False}, Trainer),
        ({"DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD": 0.9}, Trainer),
        ({"SEED": -1}, WithOwnData),
    ],
)
def test_a_resumed_training_goes_on_as_the_whole_one(shapes_root, tmp_path, settings, trainer, caplog):
    check_equal(*interrupted(tmp_path, settings, trainer))
    assert "random numbers" not in caplog.text


def test_after_sigterm_with_mixed_precision_parts_and_an_average(shapes_root, tmp_path):
    """The losses, and in the end the weights, their average and the optimizer."""
    settings = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16", "SOLVER.ACCUMULATION_STEPS": 2}
    whole, parts, resumed = interrupted(tmp_path, settings, ends=partial(terminated_at, 1))
    assert len(whole) == 10  # two parts a step
    assert (parts, resumed) == (whole[:4], whole[4:])
    ends = [torch.load(tmp_path / name / "model_final.pth") for name in ("whole", "parts")]
    for key in ("model", "model_ema"):
        assert all(torch.equal(ends[0][key][name], ends[1][key][name]) for name in ends[0][key])
    moments = [end["trainer"]["_trainer"]["optimizer"]["state"] for end in ends]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])
    assert not all(torch.equal(ends[0]["model"][name], ends[0]["model_ema"][name]) for name in ends[0]["model"])


def test_the_number_of_workers_may_change(shapes_root, tmp_path, caplog):
    check_equal(*interrupted(tmp_path, {"DATALOADER.NUM_WORKERS": 0}, then={"DATALOADER.NUM_WORKERS": 2}))
    assert "uninterrupted" not in caplog.text


def test_the_training_set_is_read_once_with_a_checkpoints_seed(shapes_root, tmp_path, monkeypatch):
    loads, get = [], DatasetCatalog.get
    monkeypatch.setattr(type(DatasetCatalog), "get", lambda self, name: loads.append(name) or get(name))
    interrupted(tmp_path, {"SEED": -1})
    assert loads == ["shapes_train"] * 3


@pytest.mark.parametrize(
    ("then", "warning"),
    [
        ({"SEED": 2}, "after 6 images; .* uninterrupted training: SEED 2, not 1"),
        ({"SOLVER.IMS_PER_BATCH": 1}, "after 6 images; .*: images a batch 1, not 2"),
        ({"DATALOADER.FILTER_EMPTY_ANNOTATIONS": True}, "after 6 images; .*: images in the training set 47, not 48"),
    ],
)
def test_what_changes_the_order_is_named(shapes_root, tmp_path, caplog, then, warning):
    whole, _, resumed = interrupted(tmp_path, {}, then=then)
    assert len(re.findall(warning, caplog.text)) == 1
    assert resumed[0]["iteration"] == 3
    if "SOLVER.IMS_PER_BATCH" in then:  # the same images, one by one
        assert [x["images"][0] for x in resumed] == [name for x in whole[3:] for name in x["images"]][:2]


def test_a_checkpoint_without_the_order_begins_it_again(shapes_root, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Trainer, "state_dict", DefaultTrainer.state_dict)
    whole, _, resumed = interrupted(tmp_path, {})
    assert caplog.text.count("the order begins again, with other random numbers") == 1
    assert resumed[0]["images"] == whole[0]["images"]


def test_a_loader_of_the_users_own_keeps_its_order(shapes_root, tmp_path, caplog):
    class OwnLoader(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return itertools.cycle(itertools.islice(super().build_train_loader(cfg), 4))

    whole, _, resumed = interrupted(tmp_path, {}, OwnLoader)
    assert caplog.text.count("is not one of Detectron2's: which images come next is left to it") == 1
    assert [x["images"] for x in resumed] == [x["images"] for x in whole[:2]]


def test_hooks_may_look_at_the_loader_and_draw_numbers(shapes_root, tmp_path):
    """Batches that others take, and random numbers that others draw, change nothing of the training."""

    class Curious(HookBase):
        def after_step(self):
            next(iter(self.trainer.data_loader))
            torch.rand(3), np.random.rand(), random.random()

    class WithHook(Trainer):
        def build_hooks(self):
            return [Curious(), *super().build_hooks()]

    runs = []
    for kind in (Trainer, WithHook):
        seed_all_rng(0)
        cfg = config(tmp_path / "run", {"DATASETS.TEST": "()", **SHORT, "SOLVER.MAX_ITER": 3})
        train(cfg, tmp_path / f"{kind.__name__}.jsonl", resume=False, trainer=kind)
        runs.append(lines(tmp_path / f"{kind.__name__}.jsonl"))
    assert runs[0] == runs[1]


def test_an_evaluation_that_was_killed_is_repeated_first(shapes_root, run_config, caplog):
    """Its result counts for early stopping and the best checkpoint, once, and is in metrics.json."""
    caplog.set_level("INFO", "detr")
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 2, "SOLVER.MAX_ITER": 12})
    trainer, _, _ = trainer_with(cfg, [5.0, 4.0])
    with pytest.raises(IndexError):  # in the third evaluation
        trainer.train()
    assert saved(cfg, "model_0000005")["trainer"]["evaluated"] == 4
    trainer, recorder, left = trainer_with(cfg, [6.0, 3.0, 2.0])
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert caplog.text.count("iteration 6 has not been evaluated: evaluating first") == 1
    assert (left, recorder.seen) == ([], (10, 10, 10))
    assert saved(cfg, "model_best")["iteration"] == 5
    patience = saved(cfg)["trainer"]["hooks"]["EarlyStopping"]
    assert (patience["best"], patience["best_iteration"], patience["not_better"]) == (6.0, 6, 2)
    metrics = map(json.loads, Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines())
    assert {x["iteration"]: x["bbox/AP"] for x in metrics if "bbox/AP" in x} == {1: 5, 3: 4, 5: 6, 7: 3, 9: 2}


def test_a_training_may_stop_early_at_an_evaluation_that_was_killed(shapes_root, run_config):
    cfg = run_config({**EARLY, "SOLVER.PATIENCE": 1, "SOLVER.MAX_ITER": 12})
    with pytest.raises(IndexError):
        trainer_with(cfg, [5.0])[0].train()
    trainer, recorder, left = trainer_with(cfg, [4.0])
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert (left, recorder.seen) == ([], (4, 4, 4))
    assert saved(cfg)["iteration"] == 3


def run_a_rank(rank, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    comm.create_local_process_group(2)
    ensure_shapes(Path(os.environ["DETECTRON2_DATASETS"]), train_images=48, val_images=16)
    (Path(folder) / str(rank)).mkdir()
    for name in ("whole", "parts"):
        (Path(folder) / name).mkdir(exist_ok=True)
    # The second life is ended by a signal to one of the ranks.
    lives = (
        ("whole", Trainer),
        ("parts", killed_at(4)),
        ("parts", terminated_at(4) if rank else Trainer),
        ("parts", Trainer),
    )
    for number, (name, kind) in enumerate(lives):
        seed_all_rng(rank)
        settings = {**SHORT, "SOLVER.MAX_ITER": 6, "SOLVER.CHECKPOINT_PERIOD": 2, "DATASETS.TEST": "()", "SEED": -1}
        trainer = kind(config(Path(folder) / name, settings))
        trainer.register_hooks([Losses(trainer.model, Path(folder) / str(rank) / f"{number}.jsonl")])
        trainer.resume_or_load(resume=number > 1)
        with contextlib.suppress(Killed, StoppedTraining):
            trainer.train()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_go_on_and_one_takes_over(shapes_root, tmp_path, caplog):
    torch.multiprocessing.spawn(run_a_rank, args=(str(tmp_path),), nprocs=2)
    ranks = []
    for rank in range(2):
        whole, killed, stopped, resumed = (lines(tmp_path / str(rank) / f"{number}.jsonl") for number in range(4))
        assert (len(whole), killed, stopped, resumed) == (6, whole[:4], whole[4:5], whole[5:])
        ranks.append(whole)
    assert ranks[0] != ranks[1]
    # One process goes on from a checkpoint of two; its batches have the images of both.
    (tmp_path / "whole" / "last_checkpoint").write_text("model_0000003.pth")
    settings = {**SHORT, "SOLVER.MAX_ITER": 6, "DATASETS.TEST": "()", "SEED": -1}
    train(config(tmp_path / "whole", settings), tmp_path / "one.jsonl", resume=True)
    assert caplog.text.count("uninterrupted training: processes 1, not 2") == 1
    one = [set(x["images"]) for x in lines(tmp_path / "one.jsonl")]
    assert one == [set(a["images"] + b["images"]) for a, b in zip(*ranks, strict=True)][4:]
