"""Trainings with denoising, query groups and anchors, from end to end: what they leave is a plain DETR."""

import json
import os

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage

from detr import Detr
from detr.checkpoint import DetrCheckpointer
from detr.engine.defaults import load_config
from detr.engine.solver import build_optimizer
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.conftest import QUICKSTART, TRAINING_QUERIES, as_opts, make_input
from tests.engine.test_dry_run import run
from tests.engine.test_masks import PANOPTIC
from tests.engine.test_training import TRAINING, iterations, train
from tests.lively import raw_outputs

pytestmark = pytest.mark.usefixtures("writers_are_closed")

SETTINGS = {**TRAINING, **TRAINING_QUERIES, "SOLVER.MAX_ITER": 20, "TEST.EVAL_PERIOD": 10}
KINDS = {  # config and settings of a plain model, and what its evaluation measures
    "boxes": (QUICKSTART, {}, {"bbox"}),
    "masks": (
        PANOPTIC,
        {"DATASETS.TRAIN": "('shapes_train',)", "DATASETS.TEST": "('shapes_val',)", "MODEL.DETR.NUM_CLASSES": 4,
         "MODEL.DETR.PANOPTIC.ENABLED": False},
        {"bbox", "segm"},
    ),
    "panoptic": (PANOPTIC, {"MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.1}, {"bbox", "segm", "panoptic_seg"}),
}  # fmt: skip
PLAIN = dict.fromkeys((key for key, value in TRAINING_QUERIES.items() if value is True), False)
PLAIN["MODEL.DETR.QUERY_GROUPS"] = 1


@pytest.fixture(scope="module", params=["boxes", pytest.param("masks", marks=pytest.mark.slow), "panoptic"])
def trained(request, shapes_root, tmp_path_factory):
    """The folder of a training of 20 steps with an evaluation in the middle and at the end; its kind and results."""
    config, settings, _ = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "run"
    results = train(folder, {**SETTINGS, **settings}, config=config)
    return folder, request.param, results


def found_in(folder):
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


def test_a_training_with_evaluations_in_the_middle(trained):
    folder, kind, results = trained
    assert results.keys() == KINDS[kind][2]
    *_, row = iterations(folder)
    losses = {key for key in row if key.startswith("loss_")}
    assert {"loss_ce", "loss_ce_dn", "loss_bbox_dn_0", "loss_giou_dn"} <= losses
    assert ("loss_mask" in losses) == (kind != "boxes")
    assert not [key for key in losses if key.startswith(("loss_mask_", "loss_dice_"))]  # of real queries alone
    assert "Evaluated one image in a dry run" in (folder / "log.txt").read_text()


@pytest.mark.parametrize("queries", [TRAINING_QUERIES, PLAIN], ids=["training config", "plain config"])
def test_evaluation_alone_gives_the_same_results(queries, trained, tmp_path):
    folder, kind, results = trained
    config, settings, _ = KINDS[kind]
    weights = {"MODEL.WEIGHTS": folder / "model_final.pth"}
    found = train(tmp_path, {**SETTINGS, **settings, **queries, **weights}, "--eval-only", config=config)
    assert found_in(tmp_path) == found_in(folder)
    assert found.keys() == results.keys()
    for task, numbers in found.items():
        assert numbers == pytest.approx(results[task], nan_ok=True, abs=0)


@pytest.mark.parametrize("name", ["model_0000009.pth", "model_best.pth", "model_final.pth"])
def test_every_checkpoint_loads_into_a_plain_model(name, trained):
    folder, kind, _ = trained
    config, settings, _ = KINDS[kind]
    models = []
    for queries in (TRAINING_QUERIES, PLAIN):
        model = build_model(load_config(str(config), as_opts({**SETTINGS, **settings, **queries})))
        checkpointer = DetrCheckpointer(model)
        checkpointer.load(str(folder / name))
        assert checkpointer.reinitialized == []
        models.append(model)
    assert (models[0].training_queries is None, models[1].training_queries is None) == (False, True)
    for x, y in zip(*map(raw_outputs, models), strict=True):
        assert torch.equal(x, y)


def test_another_config_is_told_before_a_resumed_training(trained):
    folder, kind, _ = trained
    config, settings, _ = KINDS[kind]
    for key, value in PLAIN.items():
        message = rf"{key} is {value} here and {TRAINING_QUERIES[key]} in the checkpoint; set it back, or start anew"
        with pytest.raises(InputError, match=message) as error:
            train(folder, {**SETTINGS, **settings, key: value, "SOLVER.MAX_ITER": 30}, "--resume", config=config)
        assert "\n" not in str(error.value)


class SameData(Trainer):
    """The same image in each step, and the same noise in a step of the same number."""

    @classmethod
    def build_train_loader(cls, cfg):
        return iter(lambda: [make_input([[10, 10, 60, 60], [50, 20, 90, 90]], [1, 3])], None)

    def run_step(self):
        torch.manual_seed(self.iter)
        super().run_step()


def test_a_resumed_training_is_the_same_to_the_last_bit(shapes_root, run_config, tmp_path):
    settings = {**TRAINING_QUERIES, "DATASETS.TEST": "()", "SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2}
    whole, half = tmp_path / "whole", tmp_path / "half"
    half.mkdir()
    whole.mkdir()
    _, losses = run(SameData(run_config({**settings, "OUTPUT_DIR": whole})))
    os.link(whole / "model_0000001.pth", half / "model_0000001.pth")
    (half / "last_checkpoint").write_text("model_0000001.pth")
    _, others = run(SameData(run_config({**settings, "OUTPUT_DIR": half})), resume=True)
    assert len(losses) == 4
    assert losses[2:] == others
    first, second = (torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (whole, half))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("trained", ["boxes"], indirect=True)
@pytest.mark.parametrize("queries", [TRAINING_QUERIES, PLAIN], ids=["from a training", "from plain"])
def test_weights_of_one_training_start_another(queries, trained, tmp_path):
    """Of a plain model, whose checkpoint --eval-only takes with the config of a training too."""
    folder, _, _ = trained
    weights = {"MODEL.WEIGHTS": folder / "model_final.pth"}
    settings = {**SETTINGS, "SOLVER.MAX_ITER": 2, "DATASETS.TEST": "()"}
    train(tmp_path / "first", {**settings, **queries, **weights})
    state = torch.load(tmp_path / "first" / "model_final.pth", weights_only=True)["model"]
    assert any(key.startswith("training_queries.") for key in state) == (queries is TRAINING_QUERIES)
    weights = {"MODEL.WEIGHTS": tmp_path / "first" / "model_final.pth"}
    assert train(tmp_path / "second", {**SETTINGS, **weights}, "--eval-only").keys() == {"bbox"}
    log = (tmp_path / "second" / "log.txt").read_text()
    assert ("re-initialized, for training alone" in log) == (queries is PLAIN)


def test_evaluation_alone_of_a_backbone_is_refused(shapes_root, trained, tmp_path):
    """What is for training alone is not missed, but all else is."""
    folder, kind, _ = trained
    config, settings, _ = KINDS[kind]
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    torch.save({k: v for k, v in state.items() if k.startswith("backbone.")}, tmp_path / "backbone.pth")
    opts = {**SETTINGS, **settings, "MODEL.WEIGHTS": tmp_path / "backbone.pth"}
    with pytest.raises(InputError, match="would evaluate random weights") as error:
        train(tmp_path / "out", opts, "--eval-only", config=config)
    assert "training_queries" not in str(error.value)


@META_ARCH_REGISTRY.register()
class DetrWithReplacedBoxes(Detr):
    """As in the documentation of NamedTuple: one field of the outputs is replaced."""

    def forward_heads(self, *args):
        outputs = super().forward_heads(*args)
        return outputs._replace(boxes=0.5 * outputs.boxes)


@META_ARCH_REGISTRY.register()
class DetrWithDoubleLosses(Detr):
    def losses(self, outputs, targets):
        return {name: 2 * loss for name, loss in super().losses(outputs, targets).items()}


@pytest.mark.parametrize("name", ["Detr", "DetrWithDoubleLosses", "DetrWithReplacedBoxes"])
@pytest.mark.parametrize("checkpointed", ["()", "('transformer',)"])
def test_a_plain_loop(name, checkpointed, shapes_root, run_config, tmp_path):
    """As in docs/extending.md; what it saves by torch alone is a plain model's."""
    options = {"MODEL.DETR.ACTIVATION_CHECKPOINT": checkpointed, "MODEL.META_ARCHITECTURE": name}
    model = build_model(run_config({**TRAINING_QUERIES, **options})).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cfg = run_config({**TRAINING_QUERIES, **options})
    optimizer = build_optimizer(cfg, model)
    with EventStorage():
        for batch, _ in zip(Trainer.build_train_loader(cfg), range(2), strict=False):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
            optimizer.step()
    expected = raw_outputs(model)  # before anything else asks for its state
    torch.save(model.state_dict(), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    for key in ("query_embed.weight", "training_queries.anchors", "training_queries.label_embed.weight"):
        assert not torch.equal(state[key], before[key]), key
    plain = build_model(run_config({"MODEL.META_ARCHITECTURE": name}))
    assert plain.load_state_dict(state, strict=False).missing_keys == []
    for x, y in zip(raw_outputs(plain), expected, strict=True):
        assert torch.equal(x, y)


def test_frozen_weights_without_masks_are_ignored_here_too(shapes_root, tmp_path, capsys):
    """They freeze nothing, so that there is something to train; with masks they are refused."""
    settings = {**SETTINGS, "SOLVER.MAX_ITER": 1, "DATASETS.TEST": "()", "MODEL.DETR.FROZEN_WEIGHTS": "gone.pth"}
    train(tmp_path / "boxes", settings)
    assert "MODEL.DETR.FROZEN_WEIGHTS is for masks, and MODEL.MASK_ON is False" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"DENOISING\.ENABLED and .* would train nothing, because"):
        build_model(load_config(str(PANOPTIC), as_opts(settings)))
