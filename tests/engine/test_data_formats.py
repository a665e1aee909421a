"""Trainings and evaluations on YOLO's, Pascal VOC's and Roboflow's files."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from detr.data import register_any
from detr.data.boxes import boxes_to_xyxy
from detr.data.loading import load_dataset
from detr.engine.data_checks import check_test_sets, check_training_sets
from detr.engine.trainer import Trainer
from detr.evaluation.evaluators import build_evaluator
from tests.data.formats.making import write_voc, write_yolo

NAMES = ["cat", "dog"]


@pytest.fixture
def dicts(tmp_path):
    """Two photos of 64 x 48 pixels with two objects each, which have polygons."""
    dicts = []
    for i in range(2):
        path = tmp_path / "photos" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(path)
        objects = [
            {"bbox": [x1, y1, x2, y2], "bbox_mode": 0, "category_id": k, "iscrowd": 0,
             "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]]}
            for k, (x1, y1, x2, y2) in enumerate([(4 + i, 4, 24, 20), (30, 10, 54, 40 - i)])
        ]  # fmt: skip
        dicts.append({"file_name": str(path), "height": 48, "width": 64, "annotations": objects})
    return dicts


def write_roboflow(folder, splits, names):
    """Roboflow's COCO files, whose category 0 groups the others."""
    for split, dicts in splits.items():
        place = folder / {"val": "valid"}.get(split, split)
        place.mkdir(parents=True)
        annotations = []
        for index, x in enumerate(dicts):
            shutil.copy(x["file_name"], place / f"{index}.jpg")
            for obj in x["annotations"]:
                x1, y1, x2, y2 = obj["bbox"]
                annotations.append(
                    {"id": len(annotations), "image_id": index, "category_id": obj["category_id"] + 1, "area": 99,
                     "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0, "segmentation": obj["segmentation"]}
                )  # fmt: skip
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in range(len(dicts))]
        categories = [{"id": 0, "name": "pets", "supercategory": "none"}]
        categories += [{"id": i + 1, "name": name, "supercategory": "pets"} for i, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (place / "_annotations.coco.json").write_text(json.dumps(content))
    return folder


WRITERS = {"YOLO": write_yolo, "Pascal VOC": write_voc, "COCO (Roboflow)": write_roboflow}


@pytest.fixture
def config(dicts, tmp_path, registered, run_config):
    """config(kind, ...) registers the photos, for training and evaluation, in a format."""

    def make(kind, **settings):
        path = WRITERS[kind](tmp_path / "data", {"train": dicts, "val": dicts}, NAMES)
        for split in ("train", "val"):
            register_any(f"mine_{split}", path, split)
            registered.append(f"mine_{split}")
        sets = {"DATASETS.TRAIN": "('mine_train',)", "DATASETS.TEST": "('mine_val',)"}
        return run_config({**sets, "MODEL.DETR.NUM_CLASSES": 2, "SOLVER.IMS_PER_BATCH": 2, **settings})

    return make


@pytest.mark.parametrize("kind", WRITERS)
def test_a_training_and_its_evaluation(config, kind, caplog):
    cfg = config(kind, **{"INPUT.CROP.ENABLED": False, "SOLVER.MAX_ITER": 3})
    with caplog.at_level(logging.WARNING):
        check_training_sets(cfg, check_test_sets(cfg))
    assert [record.message for record in caplog.records if record.name.startswith("detr.data")] == []
    trainer = Trainer(cfg)
    trainer.train()
    results = Trainer.test(cfg, trainer.model)
    assert {"AP-cat", "AP-dog"} < results["bbox"].keys()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("shift", [0, 8])
def test_detections_of_the_true_boxes_are_right_and_others_are_not(config, kind, shift):
    cfg = config(kind)
    inputs = load_dataset("mine_val")
    evaluator = build_evaluator(cfg, "mine_val")
    evaluator.reset()
    for x in inputs:
        instances = Instances((48, 64))
        instances.pred_boxes = Boxes(torch.from_numpy(boxes_to_xyxy(x["annotations"])) + shift)
        instances.pred_classes = torch.tensor([obj["category_id"] for obj in x["annotations"]])
        instances.scores = torch.ones(len(x["annotations"]))
        evaluator.process([x], [{"instances": instances}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(0 if shift else 100, abs=1e-6)


@pytest.mark.parametrize("kind", ["YOLO", "COCO (Roboflow)"])
def test_polygons_become_masks(config, kind):
    cfg = config(kind, **{"MODEL.MASK_ON": True, "INPUT.CROP.ENABLED": False, "SOLVER.MAX_ITER": 1})
    check_training_sets(cfg, check_test_sets(cfg))
    trainer = Trainer(cfg)
    trainer.train()
    assert {"bbox", "segm"} <= Trainer.test(cfg, trainer.model).keys()
