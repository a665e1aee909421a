"""The evaluation of one image before training: what it finds, and that it changes nothing."""

import json
import logging
import os
import random
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils.events import get_event_storage

from detr.engine.dry_run import evaluate_one_image
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.evaluation.test_evaluators import PANOPTIC

pytestmark = pytest.mark.usefixtures("writers_are_closed")

LINE = "Evaluated one image in a dry run"


class OwnEvaluator(DatasetEvaluator):
    """Counts images, and fails in the method ``fails_in`` once ``working`` evaluations are over."""

    images: ClassVar[list[int]] = []
    working = 0  # so many evaluations go through
    fails_in = ""

    def reset(self):
        type(self).images.append(0)

    def process(self, inputs, outputs):
        self.images[-1] += len(inputs)
        self.fail_in("process")

    def evaluate(self):
        self.fail_in("evaluate")
        get_event_storage().put_scalar("own", 1.0)  # as in a training
        return {"own": {"images": self.images[-1]}}

    def fail_in(self, method):
        if self.fails_in == method and len(self.images) > self.working:
            raise RuntimeError("the user's evaluator fails")


def trainer_with(**options):
    """A Trainer's class, and its evaluator's class with these attributes."""
    evaluator = type("Evaluator", (OwnEvaluator,), {"images": [], **options})

    class WithEvaluator(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, name, output_folder=None):
            return evaluator()

    return WithEvaluator, evaluator


class Losses(HookBase):
    """The total loss of every iteration, and how often a step was begun."""

    def __init__(self):
        self.values = []

    def after_step(self):
        self.values.append(self.trainer.storage.latest()["total_loss"][0])


def run(trainer, resume=False):
    losses = Losses()
    trainer.register_hooks([losses])
    trainer.resume_or_load(resume=resume)
    return trainer.train(), losses.values


def of_kind(registered, name, kind, **attributes):
    """`shapes_val` under another name, with another evaluator_type."""
    DatasetCatalog.register(name, lambda: DatasetCatalog.get("shapes_val"))
    MetadataCatalog.get(name).set(
        thing_classes=MetadataCatalog.get("shapes_val").thing_classes, evaluator_type=kind, **attributes
    )
    registered.append(name)
    return f"('{name}',)"


@pytest.mark.parametrize("method", ["process", "evaluate"])
def test_an_evaluator_that_fails_does_so_before_the_first_step(shapes_root, run_config, caplog, method):
    trainer, _ = trainer_with(fails_in=method)
    losses = Losses()
    training = trainer(run_config({"TEST.EVAL_PERIOD": 5}))
    training.register_hooks([losses])
    with pytest.raises(RuntimeError, match="the user's evaluator fails"):
        training.train()
    assert losses.values == []
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == (
        "the evaluation of the data set shapes_val fails in a dry run before training (RuntimeError), as it would have "
        "after 5 iterations; TEST.DRY_RUN False trains without a dry run"
    )
    assert training.model.training


def test_results_that_detectron2_cannot_store_are_found_before_the_first_step(shapes_root, run_config):
    trainer, _ = trainer_with(evaluate=lambda self: {"own": "good"})
    training = trainer(run_config())
    with pytest.raises(ValueError, match="nested dict of float"):
        training.train()
    assert not list(Path(training.cfg.OUTPUT_DIR).glob("*.pth"))


def test_one_image_is_evaluated_once_before_a_training_and_when_it_is_resumed(shapes_root, run_config, caplog):
    caplog.set_level(logging.INFO)
    trainer, evaluator = trainer_with()
    cfg = run_config()
    run(trainer(cfg))
    assert evaluator.images == [1, 16]
    cfg.SOLVER.MAX_ITER = 3
    run(trainer(cfg), resume=True)
    assert evaluator.images == [1, 16, 1, 16]
    run(trainer(cfg), resume=True)  # nothing is left to train
    assert evaluator.images == [1, 16, 1, 16, 16]
    assert caplog.text.count(LINE) == 2


def draw():
    """A number of every generator."""
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_the_training_is_the_same_to_the_last_bit(shapes_root, run_config, tmp_path):
    """With dropout in the model, random crops in the data and an evaluator that draws numbers too."""
    found = []
    for dry_run in (True, False):
        folder = tmp_path / str(dry_run)
        folder.mkdir()
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        evaluations, images = [], []
        trainer_class, _ = trainer_with(process=lambda self, x, y, seen=evaluations: seen.append(draw()), images=images)
        settings = {"SOLVER.MAX_ITER": 4, "MODEL.DETR.DROPOUT": 0.3, "INPUT.CROP.ENABLED": True}
        crop = {"INPUT.CROP.TYPE": "relative", "INPUT.CROP.SIZE": "(0.5, 0.5)"}
        trainer = trainer_class(run_config({**settings, **crop, "TEST.DRY_RUN": dry_run, "OUTPUT_DIR": folder}))
        modes = [module.training for module in trainer.model.modules()]
        trainer.test = lambda cfg, model: {}  # no other evaluation
        _, losses = run(trainer)
        assert [module.training for module in trainer.model.modules()] == modes
        assert len(evaluations) == dry_run
        found.append((losses, *draw()))
    assert len(found[0][0]) == 4
    assert found[0] == found[1]


def test_a_module_that_the_user_froze_stays_in_its_mode(shapes_root, run_config):
    class Frozen(HookBase):
        def before_train(self):
            self.modes = self.trainer.model.training, self.trainer.model.backbone.training

    trainer = Trainer(run_config())
    trainer.model.backbone.eval()
    hook = Frozen()
    trainer.register_hooks([hook])
    trainer.train()
    assert hook.modes == (True, False)


@pytest.mark.parametrize("panoptic", [False, True])
def test_it_is_quiet_and_leaves_an_earlier_evaluations_files(shapes_root, run_config, caplog, capsys, panoptic):
    """Of Detectron2's evaluators too, of which the panoptic one refuses ground truth without predictions."""
    caplog.set_level(logging.INFO)
    panoptic_settings = {**PANOPTIC, "DATASETS.TRAIN": "('shapes_train_panoptic',)", "TEST.COCO_BACKEND": "pycocotools"}
    trainer = Trainer(run_config(panoptic_settings if panoptic else {}))
    folder = Path(trainer.cfg.OUTPUT_DIR) / "inference"
    folder.mkdir()
    for name in ("coco_instances_results.json", "predictions.json"):
        (folder / name).write_text("earlier")
    metadata = dict(vars(MetadataCatalog.get("shapes_val_panoptic")))
    caplog.clear()
    capsys.readouterr()
    temporary = set(os.listdir(Path(trainer.cfg.OUTPUT_DIR).anchor + "tmp"))

    class Stop(HookBase):
        def before_train(self):
            raise KeyboardInterrupt

    trainer.register_hooks([Stop()])
    trainer.max_iter = 100  # so that the training that is stopped is not evaluated
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith(LINE)
    assert lines[1].startswith("Starting training")
    assert capsys.readouterr().out == ""
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "coco_instances_results.json": "earlier",
        "predictions.json": "earlier",
    }
    assert vars(MetadataCatalog.get("shapes_val_panoptic")) == metadata
    left = {x for x in set(os.listdir("/tmp")) - temporary if x.startswith("detr-dry-run")}
    assert not left


def test_an_image_without_stuff_has_no_pq_and_stops_nothing(shapes_root, run_config, registered, tmp_path):
    """panopticapi divides by the number of classes of stuff."""
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    content = json.loads(Path(metadata.panoptic_json).read_text())
    stuff = {category["id"] for category in content["categories"] if not category["isthing"]}
    first = content["annotations"][0]
    first["segments_info"] = [x for x in first["segments_info"] if x["category_id"] not in stuff]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    shared = {key: value for key, value in metadata.as_dict().items() if key != "name"}
    name = "one_sided"
    registered.append(name)
    DatasetCatalog.register(name, lambda: DatasetCatalog.get("shapes_val_panoptic"))
    MetadataCatalog.get(name).set(**{**shared, "panoptic_json": str(tmp_path / "panoptic.json")})
    cfg = run_config({**PANOPTIC, "DATASETS.TRAIN": "('shapes_train_panoptic',)", "DATASETS.TEST": f"('{name}',)"})
    evaluate_one_image(Trainer, cfg, build_model(cfg))


def test_a_set_of_plain_dicts_keeps_its_metadata(shapes_root, run_config, registered):
    """Detectron2's evaluator writes a COCO file for it, whose path it puts into the metadata."""
    cfg = run_config({"DATASETS.TEST": of_kind(registered, "plain_dicts", "coco")})

    class WithDetectron2s(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)

    for trainer, has_file in ((Trainer, False), (WithDetectron2s, True)):
        results, _ = run(trainer(cfg))
        assert "bbox" in results
        path = MetadataCatalog.get("plain_dicts").get("json_file", "")
        assert path.startswith(cfg.OUTPUT_DIR) if has_file else not path


def test_a_set_without_annotations(shapes_root, run_config, registered, tmp_path):
    metadata = MetadataCatalog.get("shapes_val")
    content = json.loads(Path(metadata.json_file).read_text())
    del content["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(content))
    names = of_kind(registered, "without_annotations", "coco", json_file=str(tmp_path / "test.json"))
    results, _ = run(Trainer(run_config({"DATASETS.TEST": names})))
    assert results == {}


@pytest.mark.parametrize("result", [None, {}])
def test_an_evaluator_without_results(shapes_root, run_config, result):
    trainer, _ = trainer_with(evaluate=lambda self: result)
    assert run(trainer(run_config()))[0] == {}


def test_a_loader_that_yields_nothing(shapes_root, run_config):
    class Empty(Trainer):
        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            return []

    assert run(Empty(run_config()))[0] == {}


def test_a_trainer_without_an_evaluator(shapes_root, run_config):
    class Without(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            raise NotImplementedError

    assert run(Without(run_config()))[0] == {}


def test_a_test_of_the_users_own_is_not_tried(shapes_root, run_config):
    class OwnTest(Trainer):
        calls = 0

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            cls.calls += 1
            return {}

        @classmethod
        def build_test_loader(cls, cfg, dataset_name):
            raise AssertionError("not called")

    run(OwnTest(run_config()))
    assert OwnTest.calls == 1


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("lvis", "lvis"),
        ("cityscapes_instance", "cityscapesscripts"),
        ("cityscapes_sem_seg", "cityscapesscripts"),
    ],
)
def test_a_package_that_is_missing_is_named_before_the_first_step(
    shapes_root, run_config, registered, monkeypatch, kind, package
):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks a module that cannot be imported
    cfg = run_config({"DATASETS.TEST": of_kind(registered, f"of_{kind}", kind)})
    with pytest.raises(InputError, match=rf"of_{kind} needs the package {package}, .*: pip install {package}$"):
        Trainer(cfg)


def test_one_image_of_a_large_set_is_compared_with_its_own_objects_alone(shapes_root, run_config, registered, tmp_path):
    """pycocotools would compare every image with every class: 5,000 and 80 of COCO take it 8 s a task."""
    content = json.loads(Path(MetadataCatalog.get("shapes_val").json_file).read_text())
    more = [{**content["images"][0], "id": 10_000 + i} for i in range(20_000)]
    content["images"] += more
    (tmp_path / "large.json").write_text(json.dumps(content))
    names = of_kind(registered, "large", "coco", json_file=str(tmp_path / "large.json"))
    sizes = []

    class Restricted(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            evaluator = COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)
            whole = evaluator.evaluate
            evaluator.evaluate = lambda: sizes.append(len(evaluator._coco_api.imgs)) or whole()
            return evaluator

    run(Restricted(run_config({"DATASETS.TEST": names})))
    assert sizes == [1, 20_016]
