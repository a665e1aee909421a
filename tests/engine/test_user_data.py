"""Data as people really register it, through the checks, the mapper, a training and its evaluation."""

import copy
import itertools
import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.datasets.lvis import register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.structures import BoxMode
from PIL import Image

from detr.engine import data_checks, samplers
from detr.engine.trainer import Trainer
from detr.errors import InputError

BOXES = [[4, 4, 20, 16], [30, 10, 24, 30]]


@pytest.fixture
def folder(tmp_path):
    """Four photos of 64 x 48 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    for index, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"{index}.jpg")
    return tmp_path


@pytest.fixture
def register(folder, registered):
    """register(change=..., name=...) registers a COCO file, to whose content the change was made."""

    def to_coco(change=None, name="mine"):
        annotations = [
            {"id": 2 * i + k + 1, "image_id": i, "category_id": k + 1, "bbox": box, "area": 400, "iscrowd": 0}
            for i in range(4)
            for k, box in enumerate(BOXES)
        ]
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(4)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": copy.deepcopy(annotations),
        }
        if change:
            change(content)
        path = folder / f"{name}.json"
        path.write_text(json.dumps(content))
        register_coco_instances(name, {}, str(path), str(folder))
        registered.append(name)
        return name

    def to_dicts(dicts, name="mine", **metadata):
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).set(**metadata)
        registered.append(name)
        return name

    to_coco.dicts = to_dicts
    return to_coco


@pytest.fixture
def config(run_config):
    def make(train, test=None, **settings):
        sets = {"DATASETS.TRAIN": f"('{train}',)", "DATASETS.TEST": f"('{test or train}',)"}
        return run_config({**sets, "MODEL.DETR.NUM_CLASSES": 2, "INPUT.CROP.ENABLED": False, **settings})

    return make


def every(kind, **keys):
    def apply(content):
        for entry in content[kind]:
            entry.update(keys)

    return apply


def without(kind, key):
    def apply(content):
        for entry in content[kind]:
            entry.pop(key)

    return apply


def merged_with_itself(content):
    """Two files of two images each, numbered from 0 each."""
    for image in content["images"][2:]:
        image["id"] -= 2
    for annotation in content["annotations"][4:]:
        annotation["image_id"] -= 2
        annotation["id"] += 100


WORKS = {
    "two corners": every("annotations", segmentation=[[1, 2, 9, 11]]),
    "no iscrowd": without("annotations", "iscrowd"),
    "no area": without("annotations", "area"),
    "area as text": every("annotations", area="many"),
    "width null": every("images", width=None),
    "height missing": without("images", "height"),
    "width as text": every("images", width="64"),
    "date_captured 0": every("images", date_captured=0),
}


@pytest.mark.parametrize("case", WORKS)
def test_what_has_one_reading_trains_and_is_evaluated(case, register, config, caplog):
    caplog.set_level(logging.INFO)
    cfg = config(register(WORKS[case]))
    trainer = Trainer(cfg)
    batches = itertools.islice(trainer.data_loader, 3)
    assert {len(x["instances"]) for batch in batches for x in batch} == {2}  # no object is lost
    assert "bbox" in trainer.train()
    table = next(text for text in caplog.messages if text.startswith("What the data sets hold"))
    assert ["objects", "8"] in [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert "perfect detections would have" not in caplog.text


REFUSED = {
    "merged from two": (merged_with_itself, "the id 0 occurs more than once in the images"),
    "a box as text": (every("annotations", bbox="4 4 20 16"), r"0\.jpg has an object with the bbox '4 4 20 16'"),
    "boxes of three numbers": (every("annotations", bbox=[4, 4, 20]), r"with the bbox \[4, 4, 20\]"),
    "no boxes": (without("annotations", "bbox"), r"0\.jpg has an object without 'bbox'"),
    "boxes of 1e30": (every("annotations", bbox=[0, 0, 1e30, 5]), r"0\.jpg is 64 x 48 pixels .*1e\+30"),
    "all boxes zero": (every("annotations", bbox=[0, 0, 0, 0]), "no object is left in the data set"),
    "another width": (every("images", width="65"), r"is 64 x 48 pixels .* says 65 x 48"),
    "names null": (every("categories", name=None), "category 1 has the name None"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("where", ["training", "test"])
def test_the_same_mistakes_are_found_in_training_and_test_sets(where, case, register, config):
    change, message = REFUSED[case]
    bad, good = register(change, "bad"), register(None, "good")
    cfg = config(bad, good) if where == "training" else config(good, bad)
    with pytest.raises(InputError, match=message) as error:
        Trainer(cfg)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["training", "test"])
def test_labels_of_dicts_are_checked_in_test_sets_too(where, register, config, folder):
    def dicts(label):
        obj = {"bbox": [4, 4, 20, 16], "bbox_mode": BoxMode.XYWH_ABS, "category_id": label}
        return [{"file_name": folder / f"{i}.jpg", "annotations": [obj]} for i in range(4)]

    bad, good = register.dicts(dicts(2), "bad"), register.dicts(dicts(1), "good")  # without ids, sizes and classes
    with pytest.raises(InputError, match=r"0\.jpg has an object of category 2, outside \[0, 2\)"):
        Trainer(config(bad, good) if where == "training" else config(good, bad))
    assert "bbox" in Trainer(config(good)).train()


@pytest.mark.parametrize("x", [1e8, 1e30, float("nan")])
def test_a_polygon_far_away_is_refused_with_masks_and_ignored_without(x, register, config):
    name = register(every("annotations", segmentation=[[4, 4, x, 4, 20, 20]]))
    with pytest.raises(InputError, match=r"0\.jpg has an object with a segmentation that cannot be read"):
        data_checks.check_training_sets(config(name, **{"MODEL.MASK_ON": True}))
    assert len(data_checks.check_training_sets(config(name))) == 4


def test_a_box_of_negative_width_is_dropped_by_all(register, config, caplog):
    def change(content):
        content["annotations"][0]["bbox"] = [24, 4, -20, 16]

    cfg = config(register(change))
    data_checks.check_training_sets(cfg), data_checks.check_test_sets(cfg)
    (warning,) = [text for text in caplog.messages if "are dropped" in text and "1 of 8" in text][:1]
    assert "0.jpg" in warning
    counts = {}
    for batch in itertools.islice(Trainer.build_train_loader(cfg), 6):
        counts |= {x["file_name"][-5:]: len(x["instances"]) for x in batch}
    assert counts == {"0.jpg": 1, "1.jpg": 2, "2.jpg": 2, "3.jpg": 2}
    assert "perfect detections" not in caplog.text


def test_a_test_set_without_objects_is_warned_of(register, config, caplog):
    data_checks.check_test_sets(config("none", register(lambda content: content["annotations"].clear())))
    assert "mine: no object is annotated, so that there is no AP" in caplog.messages


def test_a_training_set_without_objects_is_an_error(register, config):
    name = register(lambda content: content["annotations"].clear())
    with pytest.raises(InputError, match=r"the training set mine has no object at all"):
        data_checks.check_training_sets(config(name))


def test_crowds_need_no_queries(register, config, caplog):
    def change(content):
        content["annotations"] += [{**content["annotations"][0], "id": 100 + i, "iscrowd": 1} for i in range(30)]

    cfg = config(register(change))
    assert cfg.MODEL.DETR.NUM_OBJECT_QUERIES == 20
    data_checks.check_training_sets(cfg)
    assert "more objects than" not in caplog.text


def test_one_table_has_training_and_test_sets(register, config, caplog):
    caplog.set_level(logging.INFO)
    Trainer(config(register(None, "train"), register(WORKS["no area"], "val"))).train()
    (table,) = [text for text in caplog.messages if text.startswith("What the data sets hold")]
    assert [cell.strip() for cell in table.splitlines()[1].split("|")] == ["", "", "train", "val", ""]


def test_a_limit_of_the_evaluation_is_named(register, config, caplog):
    """COCO's AP counts 100 detections of an image and class."""

    def change(content):
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": 100 + i, "bbox": [i % 40, i % 30, 5 + i % 7, 6]} for i in range(150)]

    data_checks.check_test_sets(config(register(change)))
    (warning,) = [text for text in caplog.messages if "perfect detections" in text]
    assert "the classes cat: image 0 has 151 objects of one class, and AP counts 100" in warning


def test_json_file_and_dicts_must_be_of_the_same_images(register, config, folder):
    register(None, "in_file")
    dicts = [{"file_name": str(folder / f"{i}.jpg"), "image_id": i} for i in range(3)]
    path = str(folder / "in_file.json")
    name = register.dicts(dicts, json_file=path, thing_classes=["cat", "dog"])
    with pytest.raises(InputError, match=r"lacks the image with the id 3, which .*has, with objects that would count"):
        data_checks.check_test_sets(config("in_file", name))
    dicts += [{**dicts[0], "image_id": 3}, {**dicts[0], "image_id": 9}]
    with pytest.raises(InputError, match=r"has the image with the id 9, which .*in_file\.json does not have"):
        data_checks.check_test_sets(config("in_file", name))
    dicts[-1] = {**dicts[0], "image_id": 2}
    with pytest.raises(InputError, match=r"the image_id 2 of the data set mine occurs more .*2\.jpg and .*0\.jpg"):
        data_checks.check_test_sets(config("in_file", name))


def test_images_without_the_key_annotations_are_empty(register, config, folder):
    obj = {"bbox": [4, 4, 20, 16], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    dicts = [{"file_name": str(folder / f"{i}.jpg"), "annotations": [obj]} for i in range(4)]
    del dicts[1]["annotations"]
    name = register.dicts(dicts, thing_classes=["cat", "dog"])
    assert len(data_checks.check_training_sets(config(name))) == 4
    cfg = config(name, **{"DATALOADER.FILTER_EMPTY_ANNOTATIONS": True})
    assert len(data_checks.check_training_sets(cfg)) == 3


def test_rare_segments_are_repeated(shapes_root, run_config):
    settings = {
        "DATASETS.TRAIN": "('shapes_train_panoptic',)",
        "DATASETS.TEST": "()",
        "MODEL.DETR.NUM_CLASSES": 7,
        "MODEL.MASK_ON": True,
        "DATALOADER.SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": 0.9,
    }
    cfg = run_config(settings)
    sampler = samplers.panoptic_sampler(cfg, data_checks.load_training_sets(cfg))
    assert isinstance(sampler, RepeatFactorTrainingSampler)
    repeats = sampler._int_part + sampler._frac_part
    assert len(repeats) == 48
    assert 1 <= repeats.min() < repeats.max()
    Trainer(cfg).train()
    cfg = run_config({**settings, "DATALOADER.SAMPLER_TRAIN": "WeightedCategoryTrainingSampler"})
    with pytest.raises(InputError, match="WeightedCategoryTrainingSampler cannot read panoptic data sets"):
        samplers.panoptic_sampler(cfg, [])


@pytest.mark.parametrize(
    "crowd", [{"bbox": [1, 1, 5, 5], "category_id": -1}, {"category_id": 0}, {"bbox": [1, 1, 5, 5]}]
)
def test_crowds_need_no_class_and_no_box(crowd, register, config, folder):
    """Regions to ignore, as VisDrone has them."""
    obj = {"bbox": [4, 4, 20, 16], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    objects = [obj, {"bbox_mode": BoxMode.XYWH_ABS, **crowd, "iscrowd": 1}]
    dicts = [{"file_name": str(folder / f"{i}.jpg"), "annotations": objects} for i in range(4)]
    cfg = config(register.dicts(dicts, thing_classes=["cat", "dog"]))
    trainer = Trainer(cfg)
    assert {len(x["instances"]) for batch in itertools.islice(trainer.data_loader, 2) for x in batch} == {1}
    assert "bbox" in trainer.train()


def test_a_missing_package_of_a_loader_is_named(config, registered, folder):
    (folder / "lvis.json").write_text("{}")
    register_lvis_instances("of_lvis", {}, str(folder / "lvis.json"), str(folder))
    registered.append("of_lvis")
    with pytest.raises(InputError, match=r"the data set of_lvis needs the package lvis, .*: pip install lvis$"):
        data_checks.check_test_sets(config("of_lvis"))


def test_objects_that_an_own_loader_loses_are_counted(register, config, folder, registered, caplog):
    """Detectron2's loader drops objects whose segmentation is two corners, boxes or not."""

    def change(content):
        content["annotations"][0]["segmentation"] = [[1, 2, 9, 11]]

    register(change, "in_file")
    path = str(folder / "in_file.json")
    DatasetCatalog.register("own", lambda: load_coco_json(path, str(folder), "own"))
    registered.append("own")
    MetadataCatalog.get("own").set(json_file=path, image_root=str(folder), evaluator_type="coco")
    data_checks.check_test_sets(config("in_file", "own"))
    (warning,) = [text for text in caplog.messages if "are not in the data set" in text]
    assert "and 1 of its 8 are not in the data set" in warning


def test_an_own_evaluator_leaves_the_other_checks(register, config):
    class WithOwnEvaluator(Trainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            raise AssertionError("not called")

    bad, good = register(every("annotations", bbox=[4, 4, 20]), "bad"), register(None, "good")
    with pytest.raises(InputError, match=r"with the bbox \[4, 4, 20\]"):
        WithOwnEvaluator(config(good, bad))
