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
def test_two_stages_leave_the_boxes_as_they_are(key, boxes, tmp_path):
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


def test_a_detr_that_is_frozen_and_was_never_trained_is_warned_of(shapes_root, tmp_path):
    settings = {**MASKS, "SOLVER.MAX_ITER": 1, "DATASETS.TEST": "()", "MODEL.DETR.FREEZE_DETR": True}
    train(tmp_path, settings, config=PANOPTIC)
    told = "masks are trained on is frozen, and not trained: there are no weights. Name a trained one"
    assert told in (tmp_path / "log.txt").read_text()


def test_masks_of_instances_train_on_polygons_and_rles(shapes_root, tmp_path):
    settings = {**MASKS, "DATASETS.TRAIN": "('shapes_train',)", "DATASETS.TEST": "('shapes_val',)",
                "MODEL.DETR.NUM_CLASSES": 4, "MODEL.DETR.PANOPTIC.ENABLED": False}  # fmt: skip
    assert train(tmp_path, settings, config=PANOPTIC).keys() == {"bbox", "segm"}


def test_boxes_alone_are_no_weights_to_evaluate_masks_with(boxes, tmp_path):
    settings = {**MASKS, "MODEL.WEIGHTS": boxes}
    with pytest.raises(InputError, match=r"would evaluate random weights, mask_head is re-initialized"):
        train(tmp_path, settings, "--eval-only", config=PANOPTIC)


def spoiled_set(name, change, **metadata):
    """`shapes_val_panoptic` with its dicts changed, under another name."""
    dicts = copy.deepcopy(DatasetCatalog.get("shapes_val_panoptic"))
    change(dicts)
    DatasetCatalog.register(name, lambda: dicts)
    known = {**MetadataCatalog.get("shapes_val_panoptic").as_dict(), "name": name, **metadata}
    MetadataCatalog.get(name).set(**known)


@pytest.fixture
def spoiled():
    yield "spoiled_panoptic"
    DatasetCatalog.remove("spoiled_panoptic")
    MetadataCatalog.remove("spoiled_panoptic")


def test_a_png_that_contradicts_its_json_is_told_before_an_evaluation(boxes, spoiled, tmp_path):
    """PQ would count its pixels wrongly without a word."""
    spoiled_set(spoiled, lambda dicts: dicts[3]["segments_info"].pop())
    settings = {**MASKS, "MODEL.WEIGHTS": boxes, "DATASETS.TEST": f"('{spoiled}',)"}
    with pytest.raises(InputError, match=r"\.png has pixels of the segments \d+, which its JSON does not list"):
        train(tmp_path, settings, "--eval-only", config=PANOPTIC)


def test_a_set_of_which_nothing_can_be_measured_is_told_before_the_training(shapes_root, spoiled, tmp_path):
    spoiled_set(spoiled, lambda dicts: None, json_file="")
    with pytest.raises(
        InputError, match="nothing of the data set spoiled_panoptic can be measured: it has no json_file"
    ):
        train(tmp_path, {**BOXES, "DATASETS.TEST": f"('{spoiled}',)"}, config=PANOPTIC)


def test_frozen_weights_without_masks_are_passed_over(shapes_root, tmp_path, capsys):
    train(tmp_path, {**BOXES, "MODEL.DETR.FROZEN_WEIGHTS": "gone.pth"}, config=PANOPTIC)
    assert "MODEL.DETR.FROZEN_WEIGHTS is for masks, and MODEL.MASK_ON is False" in capsys.readouterr().out


def test_a_frozen_detr_that_does_not_exist_is_told(shapes_root, tmp_path):
    with pytest.raises(InputError, match=r"MODEL\.DETR\.FROZEN_WEIGHTS: there is no file or folder gone\.pth"):
        train(tmp_path, {**MASKS, "MODEL.DETR.FROZEN_WEIGHTS": "gone.pth"}, config=PANOPTIC)
