"""configs/lazy: the same models, data and trainings as the YAML files, run by Detectron2's script as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from omegaconf import ListConfig

import train_net
from detr.checkpoint.formats import to_detectron2
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine.data_order import DataOrder
from detr.engine.defaults import load_config
from detr.engine.early_stopping import StoppableLoop
from detr.engine.solver import build_optimizer, schedule_in_iterations
from detr.engine.trainer import Trainer
from detr.errors import InputError
from detr.model_config import config_of
from tests.checkpoint.samples import small_original
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts, make_input
from tests.detectron2_tools import imported

LAZY = ROOT / "configs" / "lazy"
COCO_IMAGES = 118_287  # of coco_2017_train
TWINS = {
    "detr_R_50": "COCO-Detection/detr_R_50",
    "detr_R_50_DC5": "COCO-Detection/detr_R_50_DC5",
    "detr_R_101": "COCO-Detection/detr_R_101",
    "detr_R_101_DC5": "COCO-Detection/detr_R_101_DC5",
    "instances_R_50": "COCO-InstanceSegmentation/detr_R_50",
    "panoptic_R_50_boxes": "COCO-PanopticSegmentation/detr_R_50_boxes",
    "panoptic_R_50": "COCO-PanopticSegmentation/detr_R_50",
    "panoptic_R_50_DC5": "COCO-PanopticSegmentation/detr_R_50_DC5",
    "panoptic_R_101": "COCO-PanopticSegmentation/detr_R_101",
    "shapes_detection": "quickstart/shapes_detection",
}
# A tiny twin of the quickstart, with its anchors and denoising.
TINY_TRAINING = {**TINY, "MODEL.DETR.ANCHOR_QUERIES": True, "MODEL.DETR.DENOISING.ENABLED": True}
TINY_LAZY = [
    *("model.transformer.d=32", "model.transformer.feedforward=32", "model.transformer.heads=4"),
    *("model.transformer.encoder_layers=1", "model.transformer.decoder_layers=2"),
]


def pair(name):
    """(LazyConfig, cfg) of a twin."""
    return LazyConfig.load(str(LAZY / f"{name}.py")), load_config(str(ROOT / "configs" / f"{TWINS[name]}.yaml"), [])


def plain_values(model):
    """Path -> what a module holds beside tensors and modules, as text."""
    sequences, others = (tuple, list, ListConfig), (bool, int, float, str, dict, torch.dtype)
    return {
        f"{path}.{key}": str(list(value) if isinstance(value, sequences) else value)
        for path, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, sequences + others) and not key.startswith("_")
    }


def test_every_lazy_config_has_a_twin():
    assert {path.stem for path in LAZY.glob("*.py")} == set(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_the_model_is_that_of_the_yaml(name):
    lazy, cfg = pair(name)
    # Of a large model the names, shapes and settings, without the time that weights take
    cfg.MODEL.DEVICE = "cpu" if name == "shapes_detection" else "meta"
    with torch.device(cfg.MODEL.DEVICE):
        ours, expected = instantiate(lazy.model), build_model(cfg)
    assert str(ours) == str(expected)
    shapes, expected_shapes = ({k: (v.shape, v.dtype) for k, v in x.state_dict().items()} for x in (ours, expected))
    assert shapes == expected_shapes
    trainable, expected_trainable = ([p.requires_grad for p in x.parameters()] for x in (ours, expected))
    assert trainable == expected_trainable
    assert plain_values(ours) == plain_values(expected)
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS


def test_the_outputs_are_those_of_the_yaml(tiny_config):
    lazy = LazyConfig.apply_overrides(LazyConfig.load(str(LAZY / "shapes_detection.py")), TINY_LAZY)
    ours, expected = instantiate(lazy.model).eval(), build_model(tiny_config(TINY_TRAINING)).eval()
    ours.load_state_dict(expected.state_dict())
    batch = [make_input([], [], size) for size in ((96, 128), (128, 80))]
    for a, b in zip(ours(batch), expected(batch), strict=True):
        assert len(a["instances"]) == 20
        assert torch.equal(a["instances"].scores, b["instances"].scores)
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


@pytest.mark.parametrize("name", TWINS)
def test_optimizer_and_schedule_are_those_of_the_yaml(name, tiny_config):
    lazy, cfg = pair(name)
    cfg = schedule_in_iterations(cfg, 4000 if name == "shapes_detection" else COCO_IMAGES)
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER
    assert lazy.train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert lazy.train.eval_period == cfg.TEST.EVAL_PERIOD
    model = build_model(tiny_config())
    lazy.optimizer.params.model = model
    ours, expected = instantiate(lazy.optimizer), build_optimizer(cfg, model)
    assert type(ours) is type(expected)
    for a, b in zip(ours.param_groups, expected.param_groups, strict=True):
        assert [id(p) for p in a["params"]] == [id(p) for p in b["params"]]
        assert all(a[key] == b[key] for key in ("lr", "weight_decay", "betas", "eps", "fused"))
    schedule, theirs = instantiate(lazy.lr_multiplier), build_lr_scheduler(cfg, expected)._multiplier
    end = cfg.SOLVER.MAX_ITER
    for iteration in {0, 1, 150, end // 2, end - 1, *(x for step in cfg.SOLVER.STEPS for x in (step - 1, step))}:
        assert schedule(iteration / end) == pytest.approx(theirs(iteration / end), rel=1e-6), iteration


def test_the_gradient_is_clipped_as_a_whole():
    lazy = LazyConfig.load(str(LAZY / "detr_R_50.py"))
    lazy.optimizer.params.model = torch.nn.Linear(2, 1)
    optimizer = instantiate(lazy.optimizer)
    weight, bias = lazy.optimizer.params.model.parameters()
    weight.grad, bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])  # of norm 5, clipped at 0.1
    optimizer.step()
    assert weight.grad.tolist() == [[pytest.approx(0.06), 0.0]]
    assert bias.grad.tolist() == [pytest.approx(0.08)]


def test_mixed_precision_needs_an_optimizer_that_is_not_fused():
    lazy = LazyConfig.apply_overrides(LazyConfig.load(str(LAZY / "detr_R_50.py")), ["train.amp.enabled=true"])
    lazy.optimizer.params.model = torch.nn.Linear(2, 1)
    assert not instantiate(lazy.optimizer).param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["detr_R_50", "instances_R_50", "shapes_detection"])
def test_an_image_is_transformed_as_by_the_yaml(name, shapes_root):
    lazy, cfg = pair(name)
    image = DatasetCatalog.get("shapes_train")[0]
    for is_train, loader in ((True, lazy.dataloader.train), (False, lazy.dataloader.test)):
        ours, expected = instantiate(loader.mapper), DetrDatasetMapper(cfg, is_train=is_train)
        for seed in range(4):
            np.random.seed(seed)
            a = ours(image)
            np.random.seed(seed)
            b = expected(image)
            assert torch.equal(a["image"], b["image"])
            if is_train:
                assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
                assert a["instances"].get_fields().keys() == b["instances"].get_fields().keys()


def run(config, output, *overrides, flags=()):
    """What `lazyconfig_train_net.py --config-file CONFIG ...` does."""
    opts = [f"train.output_dir={output}", *overrides]
    imported("lazyconfig_train_net").main(
        default_argument_parser().parse_args(["--config-file", str(config), *flags, *opts])
    )


def last_losses(folder):
    rows = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
    return {key: value for key, value in [x for x in rows if "total_loss" in x][-1].items() if "loss" in key}


def detections(folder):
    return json.loads((Path(folder) / "inference" / "coco_instances_results.json").read_text())


SHORT = [
    "train.max_iter=3",
    "train.eval_period=0",
    "train.checkpointer.period=100",
    "dataloader.train.total_batch_size=4",
]


@pytest.fixture(scope="module")
def trained(shapes_root, tmp_path_factory):
    """(by LazyConfig, by YAML): the folders of two trainings of three steps from the same seed."""
    root = tmp_path_factory.mktemp("lazy")
    run(LAZY / "shapes_detection.py", root / "lazy", *TINY_LAZY, *SHORT, f"lr_multiplier.warmup_length={1 / 3}")
    settings = {
        **TINY_TRAINING,
        **{"SOLVER.IMS_PER_BATCH": 4, "SOLVER.MAX_ITER": 3, "TEST.EVAL_PERIOD": 0, "TEST.DRY_RUN": False},
        **{"SOLVER.WARMUP_ITERS": 1, "OUTPUT_DIR": root / "yaml"},
    }
    args = default_argument_parser().parse_args(["--config-file", str(QUICKSTART), *as_opts(settings)])
    with pytest.MonkeyPatch.context() as patch:  # Detectron2's trainer has no random numbers of a step or an image
        patch.setattr(DataOrder, "build", lambda self, build: build(self._cfg))
        patch.setattr(Trainer, "before_step", StoppableLoop.before_step)
        train_net.main(args)
    return root / "lazy", root / "yaml"


def test_the_script_trains_as_train_net(trained):
    lazy, yaml = trained
    losses, expected = last_losses(lazy), last_losses(yaml)
    assert losses.keys() == expected.keys()
    assert len(losses) > 10  # each layer's, with those of the denoising queries
    assert losses == pytest.approx(expected, rel=1e-5)
    ours, theirs = detections(lazy), detections(yaml)
    assert len(ours) == 16 * 20
    np.testing.assert_allclose([x["bbox"] for x in ours], [x["bbox"] for x in theirs], atol=1e-2)


def test_the_script_resumes(trained, tmp_path):
    lazy, _ = trained
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model_final.pth", "last_checkpoint"):
        (folder / name).write_bytes((lazy / name).read_bytes())
    run(LAZY / "shapes_detection.py", folder, *TINY_LAZY, *SHORT, "train.max_iter=5", flags=["--resume"])
    trainer = torch.load(folder / "model_final.pth", weights_only=True)["trainer"]
    assert trainer["iteration"] == 4
    assert {int(state["step"]) for state in trainer["optimizer"]["state"].values()} == {5}


def test_a_checkpoint_of_the_yaml_is_evaluated(trained, tmp_path):
    _, yaml = trained
    weights = f"train.init_checkpoint={yaml / 'model_final.pth'}"
    run(LAZY / "shapes_detection.py", tmp_path, *TINY_LAZY, weights, flags=["--eval-only"])
    assert detections(tmp_path) == detections(yaml)


@pytest.mark.slow
def test_the_authors_file_is_evaluated_without_a_conversion(shapes_root, tmp_path):
    state = small_original(num_classes=4)
    torch.save({"model": state}, tmp_path / "original.pth")
    sizes = ["model.transformer.d=64", "model.transformer.feedforward=64", "model.transformer.encoder_layers=1",
             "model.transformer.decoder_layers=1", "model.num_classes=4", "model.num_queries=10"]  # fmt: skip
    data = ["dataloader.test.dataset.names=shapes_val", "dataloader.test.num_workers=0",
            "dataloader.test.mapper.augmentations.min_size=96"]  # fmt: skip
    weights = f"train.init_checkpoint={tmp_path / 'original.pth'}"
    run(LAZY / "detr_R_50.py", tmp_path, *sizes, *data, weights, "train.device=cpu", flags=["--eval-only"])
    lazy = LazyConfig.apply_overrides(LazyConfig.load(str(LAZY / "detr_R_50.py")), [*sizes, *data])
    model = instantiate(lazy.model).eval()
    model.load_state_dict(to_detectron2(state).state)
    with torch.no_grad():
        (expected,) = model([next(iter(instantiate(lazy.dataloader.test)))[0]])
    scores = [x["score"] for x in detections(tmp_path)]
    assert len(scores) == 16 * 10
    assert scores[:10] == pytest.approx(expected["instances"].scores.tolist(), rel=1e-4)


def test_a_checkpoint_without_a_config_is_answered_with_what_to_name(trained):
    with pytest.raises(InputError, match=r"trained with a LazyConfig .* name the YAML config .* --config-file"):
        config_of(str(trained[0] / "model_final.pth"))
    assert config_of(str(trained[0] / "model_final.pth"), str(QUICKSTART)).MODEL.DETR.NUM_CLASSES == 4


PANOPTIC_SHAPES = """
from detectron2.config import LazyCall as L
from detr.modeling.small_resnet import build_small_resnet
from .configs.lazy.panoptic_R_50 import dataloader, lr_multiplier, model, optimizer, train

stages = ["res2", "res3", "res4", "res5"]
model.backbone = L(build_small_resnet)(stem_channels=8, res2_channels=8, norm="BN", out_features=stages)
model.mask_head.pyramid_channels = [32, 16, 8]
model.num_classes, model.num_queries, model.postprocessor.is_thing.num_things = 7, 5, 4
model.freeze_detr = False
dataloader.train.dataset.names, dataloader.test.dataset.names = "shapes_train_panoptic", "shapes_val_panoptic"
dataloader.train.mapper.augmentations.update(min_sizes=[128], max_size=128, crop=None)
dataloader.test.mapper.augmentations.update(min_size=128, max_size=128)
dataloader.train.num_workers = dataloader.test.num_workers = 0
train.device, train.init_checkpoint = "cpu", ""
"""


def test_a_panoptic_config_trains_and_gives_pq(shapes_root, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.py").write_text(PANOPTIC_SHAPES)
    assert LazyConfig.load(str(tmp_path / "mine.py")).dataloader.train.mapper._target_ is DetrPanopticMapper
    run(tmp_path / "mine.py", tmp_path / "run", *TINY_LAZY, *SHORT, "train.max_iter=1")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").read_text().splitlines()]
    results = {key for row in rows for key in row}
    assert {"panoptic_seg/PQ", "segm/AP", "bbox/AP", "loss_mask", "loss_dice"} <= results
