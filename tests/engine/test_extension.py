"""What people who work with Detectron2 do with a plugin: subclass, override, bring their own loop."""

from collections import OrderedDict

import pytest
import torch
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as detectron2_build_optimizer
from detectron2.utils.events import EventStorage

from detr import Detr, add_detr_config
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.engine.defaults import load_config
from detr.engine.solver import build_optimizer, schedule_in_iterations
from detr.engine.trainer import Trainer
from detr.errors import InputError
from detr.evaluation.evaluators import is_detr
from detr.export import export
from detr.modeling.criterion import SetCriterion
from detr.modeling.matcher import HungarianMatcher
from detr.modeling.position_encoding import SinePositionEncoding
from detr.modeling.postprocessing import Postprocessor
from detr.modeling.small_resnet import build_small_resnet_backbone
from detr.modeling.transformer import Transformer
from tests.conftest import ROOT, make_input


@META_ARCH_REGISTRY.register()
class DetrOfAUser(Detr):
    """As in the tutorials: one method overridden, and named in the config."""

    def losses(self, outputs, targets):
        return {name: 2 * loss for name, loss in super().losses(outputs, targets).items()}


def test_a_subclass_trains_and_is_evaluated_as_detr(shapes_root, run_config):
    cfg = run_config({"MODEL.META_ARCHITECTURE": "DetrOfAUser"})
    trainer = Trainer(cfg)
    assert isinstance(trainer.model, DetrOfAUser)
    assert type(trainer.optimizer) is torch.optim.AdamW
    results = trainer.train()
    assert results.keys() == {"bbox"}
    x = next(iter(Trainer.build_test_loader(cfg, "shapes_val")))[0]
    assert x["image"].shape == (3, 128, 128)  # by DETR's mapper: RGB, and not resized to 800


def test_a_subclass_is_held_to_the_checks_of_detr(shapes_root, run_config):
    with pytest.raises(InputError, match=r"set MODEL\.DETR\.NUM_CLASSES 4"):
        Trainer(run_config({"MODEL.META_ARCHITECTURE": "DetrOfAUser", "MODEL.DETR.NUM_CLASSES": 9}))


def test_a_subclass_with_its_own_key_is_exported(run_config, tmp_path):
    cfg = run_config({"MODEL.META_ARCHITECTURE": "DetrOfAUser"})
    cfg.MODEL.DETR.OWN_KEY = 3
    export(cfg, str(tmp_path / "exported"), "torchscript")
    assert is_detr(load_config(str(tmp_path / "exported" / "config.yaml"), []))


class Overriding(Trainer):
    """Each documented method, overridden as Detectron2's docstrings show it."""

    called: set[str]

    def __init__(self, cfg):
        type(self).called = set()
        super().__init__(cfg)

    @classmethod
    def build_model(cls, cfg):
        cls.called.add("build_model")
        return super().build_model(cfg)

    @classmethod
    def build_optimizer(cls, cfg, model):
        cls.called.add("build_optimizer")
        return torch.optim.SGD(model.parameters(), lr=0.001)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        cls.called.add("build_lr_scheduler")
        return super().build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        cls.called.add("build_train_loader")
        return build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        cls.called.add("build_test_loader")
        return build_detection_test_loader(cfg, dataset_name, mapper=DetrDatasetMapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        cls.called.add("build_evaluator")
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.called.add("test")
        return super().test(cfg, model, evaluators)

    def build_hooks(self):
        self.called.add("build_hooks")
        return [*super().build_hooks(), CountSteps()]

    def build_writers(self):
        self.called.add("build_writers")
        return super().build_writers()

    def resume_or_load(self, resume=True):
        self.called.add("resume_or_load")
        super().resume_or_load(resume=resume)

    def run_step(self):
        self.called.add("run_step")
        super().run_step()

    def train(self):
        self.called.add("train")
        return super().train()


class CountSteps(HookBase):
    steps = 0

    def after_step(self):
        self.steps += 1


DOCUMENTED = {
    *("build_model", "build_optimizer", "build_lr_scheduler", "build_train_loader", "build_test_loader"),
    *("build_evaluator", "test", "build_hooks", "build_writers", "resume_or_load", "run_step", "train"),
}


def test_every_documented_method_can_be_overridden(shapes_root, run_config):
    trainer = Overriding(run_config())
    trainer.resume_or_load(resume=False)
    assert trainer.train()["bbox"].keys() >= {"AP", "AP50"}
    assert trainer.called == DOCUMENTED
    assert type(trainer.optimizer) is torch.optim.SGD
    assert trainer._hooks[-1].steps == 2


@pytest.mark.parametrize("method", sorted(DOCUMENTED))
def test_one_method_can_be_overridden_alone(method, shapes_root, run_config):
    """The rest is Trainer's own, whatever it hands from one method to the next."""
    if isinstance(vars(DefaultTrainer)[method], classmethod):
        calling_super = classmethod(lambda cls, *args, **options: getattr(super(cls, cls), method)(*args, **options))
    else:

        def calling_super(self, *args, **options):
            return getattr(super(type(self), self), method)(*args, **options)

    trainer = type("OneOverridden", (Trainer,), {method: calling_super})(run_config())
    trainer.resume_or_load(resume=False)
    assert "bbox" in trainer.train()


def test_a_training_set_that_only_the_users_loader_knows(shapes_root, run_config):
    """DATASETS.TRAIN is empty, as where somebody builds the loader from a list of dicts."""

    class OwnData(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return iter(lambda: [make_input([[10, 10, 60, 60]], [1])], None)

    cfg = run_config()
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(InputError, match=r"CHECKPOINT_EPOCHS 3 cannot .*: set SOLVER\.CHECKPOINT_PERIOD"):
        OwnData(cfg)
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    assert "bbox" in OwnData(cfg).train()


def test_a_loader_may_be_an_instance_method(shapes_root, run_config):
    class WithInstanceMethod(Trainer):
        def build_train_loader(self, cfg):
            return build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, is_train=True))

    assert "bbox" in WithInstanceMethod(run_config()).train()


def test_the_training_set_is_loaded_once(shapes_root, run_config, monkeypatch):
    loads, get = [], DatasetCatalog.get
    monkeypatch.setattr(type(DatasetCatalog), "get", lambda self, name: loads.append(name) or get(name))
    Trainer(run_config({"DATASETS.TEST": "()"})).train()
    assert loads == ["shapes_train"]


def test_an_evaluator_of_the_users_own(shapes_root, run_config):
    class Count(DatasetEvaluator):
        def reset(self):
            self.images = 0

        def process(self, inputs, outputs):
            self.images += len(inputs)

        def evaluate(self):
            return {"count": {"images": self.images}, "flat": 0.5}

    cfg = run_config()
    assert Trainer.test(cfg, build_model(cfg), evaluators=[Count()]) == {"count": {"images": 16}, "flat": 0.5}


def test_detectron2s_trainer_says_what_to_use(shapes_root, run_config):
    with pytest.raises(InputError, match=r"OPTIMIZER is ADAMW, .*use detr\.engine\.trainer\.Trainer"):
        DefaultTrainer(run_config({"SOLVER.CLIP_GRADIENTS.ENABLED": False}))


def test_an_optimizer_that_nobody_set_is_not_ignored_either(tiny_config):
    """The default of SOLVER.OPTIMIZER, in a config that was made in Python alone."""
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "Detr", "cpu"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    model = build_model(cfg)
    with pytest.raises(InputError, match=r"SOLVER\.OPTIMIZER is ADAMW"):
        detectron2_build_optimizer(cfg, model)
    cfg.SOLVER.OPTIMIZER = "SGD"
    assert type(detectron2_build_optimizer(cfg, model)) is torch.optim.SGD


def test_another_models_config_keeps_detectron2s_optimizer():
    cfg = get_cfg()
    add_detr_config(cfg)
    model = torch.nn.Linear(2, 2)
    assert type(detectron2_build_optimizer(cfg, model)) is torch.optim.SGD
    assert type(Trainer.build_optimizer(cfg, model)) is torch.optim.SGD
    cfg.SOLVER.OPTIMIZER = "ADAMW"
    assert type(Trainer.build_optimizer(cfg, model)) is torch.optim.AdamW


def test_the_backbone_keeps_its_learning_rate_in_a_wrapped_model(tiny_config):
    cfg = tiny_config({"SOLVER.BACKBONE_MULTIPLIER": 0.1, "SOLVER.BASE_LR": 1.0})
    model = build_model(cfg)
    wrapped = torch.nn.Sequential(OrderedDict(_orig_mod=model))  # as torch.compile names it
    optimizer = build_optimizer(cfg, wrapped)
    rates = {group["lr"] for group in optimizer.param_groups if group["params"][0] in set(model.backbone.parameters())}
    assert rates == {0.1}


def test_detectron2s_trainer_trains_detr_with_sgd(shapes_root, run_config):
    cfg = run_config({"SOLVER.OPTIMIZER": "SGD", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "norm"})
    cfg.DATASETS.TEST = ()
    with pytest.raises(InputError, match="CHECKPOINT_PERIOD is not known, since the schedule is in epochs"):
        DefaultTrainer(cfg)
    cfg.SOLVER.CHECKPOINT_PERIOD = 100
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.iter == 2


def test_a_plain_loop_trains(shapes_root, run_config):
    """Detectron2's plain_train_net.py, with our optimizer and a schedule in iterations."""
    cfg = run_config({"SOLVER.MAX_ITER": 3})
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    loader = Trainer.build_train_loader(cfg)
    before = model.class_embed.weight.detach().clone()
    with EventStorage(0):
        for batch, _ in zip(loader, range(cfg.SOLVER.MAX_ITER), strict=False):
            losses = sum(model(batch).values())
            optimizer.zero_grad()
            losses.backward()
            optimizer.step()
            scheduler.step()
    assert not torch.equal(model.class_embed.weight, before)


def test_a_plain_loop_hears_that_the_schedule_is_in_epochs():
    cfg = load_config(str(ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml"), [])
    with pytest.raises(InputError, match=r"MAX_EPOCHS 300: use .*schedule_in_iterations\(cfg, "):
        range(cfg.SOLVER.MAX_ITER)
    cfg = schedule_in_iterations(cfg, 160)
    assert cfg.SOLVER.MAX_ITER == 3000


def test_lazy_config_builds_detr_from_its_parts():
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.RESNETS.update({"NORM": "BN", "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8, "OUT_FEATURES": ["res4"]})
    backbone = build_small_resnet_backbone(cfg, type("Shape", (), {"channels": 3}))
    criterion = LazyCall(SetCriterion)(matcher=LazyCall(HungarianMatcher)(), num_classes=4)
    lazy = LazyCall(Detr)(
        backbone=None,
        in_feature="res4",
        position_encoding=LazyCall(SinePositionEncoding)(channels=32),
        transformer=LazyCall(Transformer)(d=32, heads=4, encoder_layers=1, decoder_layers=2, feedforward=32),
        criterion=criterion,
        postprocessor=LazyCall(Postprocessor)(is_thing=[True] * 4),
        num_classes=4,
        num_queries=5,
    )
    lazy.transformer.decoder_layers = 3  # the point of a LazyConfig
    model = instantiate({**lazy, "backbone": backbone})
    assert len(model.transformer.decoder.layers) == 3
    losses = model.train()([make_input([[10, 10, 60, 60]], [1])])
    assert len(losses) == 9
