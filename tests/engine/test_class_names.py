"""Evaluation on a data set that numbers the classes of the training otherwise."""

import json
import logging
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from detr.checkpoint import DetrCheckpointer
from detr.engine.trainer import Trainer
from tests.conftest import QUICKSTART, TINY
from tests.lively import build_lively


@pytest.fixture
def reversed_shapes(shapes_root, registered, tmp_path):
    """Registers the validation set with its categories numbered from the last to the first; each one's other id."""
    metadata = MetadataCatalog.get("shapes_val")
    content = json.loads(Path(metadata.json_file).read_text())
    ids = sorted(category["id"] for category in content["categories"])
    other = dict(zip(ids, reversed(ids), strict=True))
    for category in content["categories"]:
        category["id"] = other[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = other[annotation["category_id"]]
    (tmp_path / "reversed.json").write_text(json.dumps(content))
    register_coco_instances("reversed", {}, str(tmp_path / "reversed.json"), metadata.image_root)
    registered.append("reversed")
    return other


def evaluate(cfg, caplog):
    """(image, score, box, category) of all detections, and the warnings."""
    caplog.clear()
    caplog.set_level(logging.WARNING)
    Trainer.evaluate(cfg)
    found = json.loads((Path(cfg.OUTPUT_DIR) / "inference" / "coco_instances_results.json").read_text())
    return [(x["image_id"], x["score"], x["bbox"], x["category_id"]) for x in found], caplog.text


def test_rows_follow_the_test_set_or_a_warning_says_that_they_do_not(reversed_shapes, run_config, tmp_path, caplog):
    model = build_lively(QUICKSTART, TINY)
    DetrCheckpointer(model, str(tmp_path)).save("model")
    settings = {"MODEL.WEIGHTS": tmp_path / "model.pth", "TEST.COCO_BACKEND": "pycocotools"}
    expected, text = evaluate(run_config(settings), caplog)
    assert "classes" not in text
    moved, text = evaluate(run_config({**settings, "DATASETS.TRAIN": "()", "DATASETS.TEST": "('reversed',)"}), caplog)
    assert "the weights number the classes otherwise, so that rows are moved" in text
    for (image, score, box, category), (its_image, its_score, its_box, its_category) in zip(
        moved, expected, strict=True
    ):
        assert (image, reversed_shapes[category]) == (its_image, its_category)
        assert [score, *box] == pytest.approx([its_score, *its_box], abs=1e-4)
    wrong, text = evaluate(run_config({**settings, "DATASETS.TEST": "('reversed',)"}), caplog)
    assert "class 0 is 'star' here and 'disc' in the model" in text
    assert wrong == expected  # the same numbers, which mean other classes
