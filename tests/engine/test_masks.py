"""Masks and panoptic maps through train_net.py: one stage, two stages, and all numbers of one evaluation."""

import copy

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from detr.errors import InputError
from tests.conftest import ROOT
from tests.engine.test_training import TRAINING, iterations, train

PANOPTIC = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"
BOXES = {
    **TRAINING,
    "SOLVER.MAX_ITER": 2,
    "MODEL.MASK_ON": False,
    "MODEL.DETR.PANOPTIC.ENABLED": False,
    "DATASETS.TEST": "()",
}
MASKS = {**TRAINING, "SOLVER.MAX_ITER": 2, "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.1}


@pytest.fixture(scope="module")
def boxes(shapes_root, tmp_path_factory):
    """Stage 1: boxes of things and stuff."""
    folder = tmp_path_factory.mktemp("boxes")
    train(folder, BOXES, config=PANOPTIC)
    return folder / "model_final.pth"


def test_one_stage_and_one_table(shapes_root, tmp_path):
    results = train(tmp_path, {**MASKS, "SOLVER.MAX_ITER": 20}, config=PANOPTIC)
    assert results.keys() == {"bbox", "segm", "panoptic_seg"}
    (row,) = iterations(tmp_path)
    assert {"loss_mask", "loss_dice", "loss_ce", "loss_bbox", "loss_giou"} < row.keys()
    assert not [key for key in row if key.startswith(("loss_mask_", "loss_dice_"))]  # of the last layer alone
    log = (tmp_path / "log.txt").read_text()
    table = log[log.index("| box AP ") :]
    assert all(f"| {name} " in table for name in ("box AP", "mask AP", "PQ", "SQ", "RQ", "PQ_th"))


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "MODEL.DETR.FROZEN_WEIGHTS"])
def test_the_second_stage_leaves_the_box_model_unchanged(key, boxes, tmp_path):
    settings = {**MASKS, key: boxes, "MODEL.DETR.FREEZE_DETR": key == "MODEL.WEIGHTS"}
    train(tmp_path, settings, config=PANOPTIC)
    assert "frozen, and not trained" not in (tmp_path / "log.txt").read_text()
    before = torch.load(boxes, weights_only=True)["model"]
    trained = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert all(torch.equal(trained["model"][name], value) for name, value in before.items())
    heads = [name for name in trained["model"] if name.startswith("mask_head.")]
    assert trained["model"].keys() - before.keys() == set(heads)
    optimizer = trained["trainer"]["_trainer"]["optimizer"]
    assert len(optimizer["state"]) == sum(len(group["params"]) for group in optimizer["param_groups"]) == len(heads)
    # The evaluation of the second stage alone reads MODEL.WEIGHTS, whatever it was trained on.
    settings = {**settings, "MODEL.WEIGHTS": tmp_path / "model_final.pth", "MODEL.DETR.FROZEN_WEIGHTS": "gone.pth"}
    assert train(tmp_path / "evaluation", settings, "--eval-only", config=PANOPTIC).keys() >= {"segm", "panoptic_seg"}


def test_freezing_an_untrained_box_model_is_warned_of(shapes_root, tmp_path):
    settings = {**MASKS, "SOLVER.MAX_ITER": 1, "DATASETS.TEST": "()", "MODEL.DETR.FREEZE_DETR": True}
    train(tmp_path, settings, config=PANOPTIC)
    warning = "masks are trained on is frozen, and not trained: there are no weights. Name a trained one"
    assert warning in (tmp_path / "log.txt").read_text()


def test_masks_of_instances_train_on_polygons_and_rles(shapes_root, tmp_path):
    settings = {**MASKS, "DATASETS.TRAIN": "('shapes_train',)", "DATASETS.TEST": "('shapes_val',)",
                "MODEL.DETR.NUM_CLASSES": 4, "MODEL.DETR.PANOPTIC.ENABLED": False}  # fmt: skip
    assert train(tmp_path, settings, config=PANOPTIC).keys() == {"bbox", "segm"}


@pytest.fixture
def altered_sets(shapes_root):
    """`shapes_val_panoptic` twice: with pixels that its JSON does not list, and without instance annotations."""
    known = MetadataCatalog.get("shapes_val_panoptic").as_dict()
    dicts = copy.deepcopy(DatasetCatalog.get("shapes_val_panoptic"))
    dicts[3]["segments_info"].pop()
    DatasetCatalog.register("unlisted_segment", lambda: dicts)
    MetadataCatalog.get("unlisted_segment").set(**{**known, "name": "unlisted_segment"})
    DatasetCatalog.register("panoptic_only", lambda: DatasetCatalog.get("shapes_val_panoptic"))
    MetadataCatalog.get("panoptic_only").set(**{**known, "name": "panoptic_only", "json_file": ""})
    yield
    for name in ("unlisted_segment", "panoptic_only"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        ({}, ["--eval-only"], "would evaluate random weights, mask_head is re-initialized"),
        (
            {"DATASETS.TEST": "('unlisted_segment',)"},
            ["--eval-only"],
            r"\.png has pixels of the segments \d+, which its JSON does not list",
        ),
        (
            {**BOXES, "DATASETS.TEST": "('panoptic_only',)"},
            [],
            "nothing of the data set panoptic_only can be measured: it has no json_file",
        ),
        (
            {"MODEL.DETR.FROZEN_WEIGHTS": "gone.pth"},
            [],
            r"MODEL\.DETR\.FROZEN_WEIGHTS: there is no file or folder gone\.pth",
        ),
    ],
    ids=["weights without masks", "unlisted segment", "nothing to measure", "missing frozen weights"],
)
def test_bad_input_is_reported_first(altered_sets, boxes, tmp_path, settings, flags, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path, {**MASKS, "MODEL.WEIGHTS": boxes, **settings}, *flags, config=PANOPTIC)
    assert not list(tmp_path.rglob("*.pth"))


def test_frozen_weights_without_masks_are_ignored_with_a_warning(shapes_root, tmp_path, capsys):
    train(tmp_path, {**BOXES, "MODEL.DETR.FROZEN_WEIGHTS": "gone.pth"}, config=PANOPTIC)
    assert "MODEL.DETR.FROZEN_WEIGHTS is for masks, and MODEL.MASK_ON is False" in capsys.readouterr().out
