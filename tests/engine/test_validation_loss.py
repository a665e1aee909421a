"""TEST.LOSS: the losses on the test sets, beside an evaluation."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer
from detr.engine.validation_loss import build_loss_loader, validation_losses
from detr.errors import InputError
from tests.conftest import QUICKSTART, TINY, TRAINING_QUERIES, as_opts, make_input, with_masks
from tests.modeling.training_parts import build_pair

BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0], [5.0, 30.0, 90.0, 90.0]]
OBJECTS = (3, 0, 1)  # of the images
MASKS = {"MODEL.MASK_ON": True}
LOSS = {"TEST.LOSS": True, "TEST.DRY_RUN": False}


def images(masks=False):
    inputs = [make_input(BOXES[:count], [1, 3, 0][:count], (64, 96), seed=i) for i, count in enumerate(OBJECTS)]
    return [with_masks(x) for x in inputs] if masks else inputs


def one_by_one(inputs):
    return [[x] for x in inputs]


@pytest.mark.parametrize("masks", [False, True])
def test_the_loss_is_that_of_all_images_in_one_batch(tiny_config, masks):
    settings = MASKS if masks else {}
    model, _ = build_pair(tiny_config, settings)
    inputs = images(masks)
    found = validation_losses(model, {"set": one_by_one(inputs)})
    model.eval()
    with torch.no_grad():
        whole = model.losses(model.forward_network(model.preprocess(inputs), True), model.targets(inputs, (64, 96)))
        single = [
            model.losses(model.forward_network(model.preprocess([x]), True), model.targets([x], (64, 96)))
            for x in inputs
        ]
    # Of classification, the mean over images; a batch weighs no-object by other totals.
    for name in ("loss_ce", "loss_ce_0"):
        whole[name] = torch.stack([x[name] for x in single]).mean()
    assert list(found) == ["val_loss", *(f"val_{name}" for name in whole)]
    for name, value in whole.items():
        assert found[f"val_{name}"] == pytest.approx(value.item(), rel=1e-4)
    assert found["val_loss"] == pytest.approx(sum(whole.values()).item(), rel=1e-4)
    assert found.keys() >= ({"val_loss_mask", "val_loss_dice"} if masks else set())


def test_the_loss_does_not_depend_on_what_is_for_training_alone(tiny_config):
    plain, model = build_pair(tiny_config, TRAINING_QUERIES)
    expected = validation_losses(plain, {"set": one_by_one(images())})
    assert validation_losses(model, {"set": one_by_one(images())}) == pytest.approx(expected, rel=1e-4)
    assert "loss_ce_dn" in model(images())


def test_nothing_is_left_behind(tiny_config):
    model, _ = build_pair(tiny_config, {"MODEL.DETR.DROPOUT": 0.5})
    model.backbone.eval()  # a mode that train() would not give back

    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    class Drawing:
        """A loader that draws, as the workers of a DataLoader do."""

        def __iter__(self):
            torch.rand(1), np.random.rand(), random.random()
            yield from one_by_one(images())

    before, modes = state(), [module.training for module in model.modules()]
    with EventStorage() as storage:
        first = validation_losses(model, {"set": Drawing()})
    assert validation_losses(model, {"set": Drawing()}) == first  # without dropout
    assert state() == before
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not storage.latest()  # class_error is of the training


def test_a_set_without_images_on_this_rank_or_without_objects(tiny_config):
    model, _ = build_pair(tiny_config, {})
    assert validation_losses(model, {"set": []}) == {"val_loss": 0}
    found = validation_losses(model, {"set": one_by_one(images()[1:2])})
    assert found["val_loss_bbox"] == 0
    assert found["val_loss"] > 0


def metrics(cfg, key):
    lines = map(json.loads, Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines())
    return [(x["iteration"], x[key]) for x in lines if key in x]


def test_it_is_logged_at_each_evaluation_and_changes_nothing(shapes_root, run_config):
    weights = []
    for loss in (False, True):
        cfg = run_config({**LOSS, "TEST.LOSS": loss, "SOLVER.MAX_ITER": 4, "TEST.EVAL_PERIOD": 2, "SEED": 7})
        cfg.OUTPUT_DIR += f"/{loss}"
        Path(cfg.OUTPUT_DIR).mkdir()
        torch.manual_seed(7), np.random.seed(7), random.seed(7)
        Trainer(cfg).train()
        weights.append(torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)["model"])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    losses = dict(metrics(cfg, "val_loss"))
    assert losses.keys() == {1, 4}  # as those of AP: after a step, and after the training
    assert losses.keys() == dict(metrics(cfg, "bbox/AP")).keys()
    assert losses[4] < losses[1]
    parts = [sum(dict(metrics(cfg, f"val_loss_{x}{layer}"))[4] for x in ("ce", "bbox", "giou")) for layer in ("", "_0")]
    assert losses[4] == pytest.approx(sum(parts))


@pytest.mark.slow
def test_panoptic_sets_and_several_of_them(shapes_root, run_config):
    panoptic = load_config(str(QUICKSTART.with_name("shapes_panoptic.yaml")), as_opts(TINY))
    cfg = run_config(
        {
            **LOSS,
            **MASKS,
            "MODEL.DETR.NUM_CLASSES": 7,
            "DATASETS.TRAIN": panoptic.DATASETS.TRAIN,
            "DATASETS.TEST": ("shapes_val_panoptic", "shapes_train_panoptic"),
        }
    )
    Trainer(cfg).train()
    names = [f"shapes_{part}_panoptic/val_loss{loss}" for part in ("val", "train") for loss in ("", "_mask", "_dice")]
    for name in names:
        assert [iteration for iteration, _ in metrics(cfg, name)] == [2]
    assert not metrics(cfg, "val_loss")


def test_images_are_as_in_evaluation(shapes_root, tiny_config):
    cfg = tiny_config({"INPUT.MIN_SIZE_TEST": 96})
    plain = list(Trainer.build_test_loader(cfg, "shapes_val"))
    for (x,), (y,) in zip(build_loss_loader(cfg, "shapes_val"), plain, strict=True):
        assert torch.equal(x["image"], y["image"])
        assert len(x["instances"])
        assert x["instances"].image_size == tuple(x["image"].shape[1:])


def test_a_loader_of_the_users_own(shapes_root, run_config):
    class Own(Trainer):
        @classmethod
        def build_loss_loader(cls, cfg, dataset_name):
            return [super().build_loss_loader(cfg, dataset_name).dataset[i : i + 1] for i in ()]

    cfg = run_config(LOSS)
    Own(cfg).train()
    assert metrics(cfg, "val_loss") == [(2, 0)]


def test_a_model_of_the_users_own_may_add_losses(tiny_config):
    model, _ = build_pair(tiny_config, {})
    losses = model.losses
    model.losses = lambda outputs, targets: {**losses(outputs, targets), "loss_count": torch.tensor(2.0)}
    assert validation_losses(model, {"set": one_by_one(images())})["val_loss_count"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"DATASETS.TEST": ()}, "DATASETS.TEST is empty"),
        ({"MODEL.META_ARCHITECTURE": "RetinaNet"}, "RetinaNet has losses in training only"),
        ({"DATASETS.TEST": ("unannotated",)}, "the data set unannotated has no annotations: set TEST.LOSS False"),
    ],
)
def test_a_loss_that_cannot_be_had_is_an_error(shapes_root, run_config, registered, settings, message):
    dicts = [{**x, "annotations": []} for x in DatasetCatalog.get("shapes_val")]
    DatasetCatalog.register("unannotated", lambda: dicts)
    MetadataCatalog.get("unannotated").thing_classes = MetadataCatalog.get("shapes_val").thing_classes
    registered.append("unannotated")
    with pytest.raises(InputError, match=message):
        Trainer(run_config({**LOSS, **settings}))
