import itertools
import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from detr.data.checks import (
    check_classes,
    check_dicts,
    check_files,
    check_registered,
    check_same_classes,
    load_dicts,
)
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.errors import InputError


def entry(path, boxes=(), category=0, size=(32, 24)):
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category} for box in boxes]
    return {"file_name": str(path), "width": size[0], "height": size[1], "annotations": annotations}


def test_an_unknown_data_set_gets_a_suggestion():
    with pytest.raises(InputError, match=r"'coco_2017_trian' is not registered; did you mean coco_2017_train"):
        check_registered("coco_2017_trian")


def test_missing_annotations_are_named(tmp_path):
    name = "checks_missing"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "gone.json"), image_root=str(tmp_path))
    try:
        with pytest.raises(InputError, match=r"its json_file .*gone\.json does not exist.*DETECTRON2_DATASETS"):
            check_files(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def coco_set(tmp_path, images, registered):
    """coco_set(content) registers a user's data set in COCO format and returns its name."""

    def register(content, name="mine"):
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        registered.append(name)
        return name

    return register


def coco(categories=((1, "cat"), (2, "dog")), labels=(1, 2)):
    """One image, an object of each of ``labels``."""
    return {
        "images": [{"id": 7, "file_name": "0.jpg", "width": 32, "height": 24}],
        "categories": [{"id": index, "name": name} for index, name in categories],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": label, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0}
            for i, label in enumerate(labels, start=1)
        ],
    }


def test_the_classes_of_a_users_set_are_known_once_it_is_loaded(coco_set):
    name = coco_set(coco())
    assert len(load_dicts([name], filter_empty=False)) == 1
    check_classes(name, 2)
    with pytest.raises(InputError, match=r"NUM_CLASSES is 80, but the data set mine has 2 classes \(cat, dog\)"):
        check_classes(name, 80)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (coco(labels=(1, 3)), "KeyError: .*category_id=3"),
        ("{ not JSON", "JSONDecodeError"),
        ({**coco(), "images": [], "annotations": []}, "is empty"),
        (coco(labels=()), "No valid data|No images"),
    ],
)
def test_a_damaged_annotation_file_is_an_error(coco_set, content, reason):
    name = coco_set(content)
    with pytest.raises(InputError, match=f"the data set mine cannot be loaded .*({reason})") as error:
        load_dicts([name], filter_empty=True)
    assert "\n" not in str(error.value)


def test_classes_in_another_order_are_an_error(coco_set):
    names = [coco_set(coco(), "first"), coco_set(coco(categories=((1, "dog"), (2, "cat"))), "second")]
    load_dicts(names[:1], False), load_dicts(names[1:], False)
    with pytest.raises(InputError, match="class 0 is 'cat' in the data set first, but 'dog' in second"):
        check_same_classes(names)
    check_same_classes(["shapes_train", "shapes_val"])


def test_another_number_of_classes_is_an_error():
    with pytest.raises(InputError, match=r"NUM_CLASSES is 5, but .*shapes_train has 4 classes .*NUM_CLASSES 4"):
        check_classes("shapes_train", 5)
    check_classes("shapes_train", 4)


BOX = [0, 0, 5, 5]
MISSING = "missing"  # the key is left out
BAD_BOXES = [[1, 2, 3], ["a", 1, 2, 3], ["1", "2", "3", "4"], [float("nan"), 1, 2, 3], [1, 2, 3, float("inf")], None, 7]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *[(key, MISSING, f"without '{key}'") for key in ("bbox", "bbox_mode", "category_id")],
        *[("bbox", box, "with the bbox .*: it must be 4 finite numbers") for box in BAD_BOXES],
        ("bbox_mode", BoxMode.XYXY_REL, r"with the bbox_mode .*XYXY_REL.*: it must be BoxMode\.XYXY_ABS or"),
        ("category_id", 4, r"of category 4, outside \[0, 4\)"),
        ("category_id", -1, "of category -1, outside"),
        *[("segmentation", x, r"without a segmentation, .*MODEL\.MASK_ON False") for x in (MISSING, None, [])],
    ],
    ids=str,
)
def test_the_first_image_with_a_bad_object_is_named(key, value, message):
    good = {**entry("", [BOX])["annotations"][0], "segmentation": [[0, 0, 5, 0, 5, 5]]}
    bad = {**good, key: value}
    if value is MISSING:
        del bad[key]
    objects = {"crowd.jpg": [good, {**bad, "iscrowd": 1}], "good.jpg": [good], "b.jpg": [good, bad], "a.jpg": [bad]}
    dicts = [{**entry(name), "annotations": annotations} for name, annotations in objects.items()]
    check_dicts(dicts[:2], 4, 20, masks=True)
    with pytest.raises(InputError, match=rf"^b\.jpg has an object {message}"):
        check_dicts(dicts, 4, 20, masks=True)
    if key == "segmentation":
        check_dicts(dicts, 4, 20)


def test_a_training_set_without_any_object_is_an_error():
    crowd = entry("c.jpg", [BOX])
    crowd["annotations"][0]["iscrowd"] = 1
    with pytest.raises(InputError, match="no object at all"):
        check_dicts([entry("a.jpg"), {"file_name": "b.jpg"}, crowd], 4, 20)


def test_degenerate_boxes_and_surplus_objects_are_counted(caplog):
    caplog.set_level(logging.WARNING)
    dicts = [
        entry("a.jpg", [[0, 0, 5, 5], [1, 1, 0, 4], [2, 2, 3, -1], [40, 2, 3, 3]]),  # the last is outside
        entry("b.jpg", [[0, 0, 5, 5]] * 4),
        entry("c.jpg", [[0, 0, 5, 5]] * 6),
    ]
    check_dicts(dicts, 4, 3)
    degenerate, surplus = caplog.messages
    assert degenerate.startswith("3 degenerate boxes")
    assert "a.jpg" in degenerate
    assert surplus.startswith("2 images have more objects than the 3 queries, up to 6 in c.jpg")


def test_the_degenerate_boxes_are_those_that_the_mapper_drops(caplog, images):
    """Boxes of both modes, of integers, floats and arrays, drawn around the border of the image."""
    caplog.set_level(logging.WARNING)
    rng = np.random.default_rng(0)
    dicts = [{**entry(path), "annotations": []} for path in images]
    dicts[1].pop("width"), dicts[1].pop("height")
    for x in dicts:
        for mode, kind in itertools.product((BoxMode.XYWH_ABS, BoxMode.XYXY_ABS), (list, tuple, np.array)):
            for _ in range(20):
                box = rng.integers(-8, 40, 4).tolist() if kind is tuple else rng.uniform(-8, 40, 4).tolist()
                x["annotations"].append({"bbox": kind(box), "bbox_mode": mode, "category_id": 0})
    mapper = DetrDatasetMapper(is_train=True, augmentations=[], image_format="RGB", num_classes=1)
    sized = [{**x, "width": 32, "height": 24} for x in dicts]
    check_dicts(sized, 1, 1000)
    dropped = sum(len(x["annotations"]) - len(mapper(x)["instances"]) for x in sized)
    assert 100 < dropped < 380
    assert caplog.messages == [
        f"{dropped} degenerate boxes (no width or no height inside the image) are dropped; the first is in {images[0]}"
    ]
    caplog.clear()
    check_dicts(dicts, 1, 1000)  # boxes right of and below an image of unknown size count as inside
    assert int(caplog.messages[0].split()[0]) < dropped


def test_crowds_need_no_queries(caplog):
    crowd = entry("a.jpg", [[0, 0, 5, 5]] * 9)
    for obj in crowd["annotations"]:
        obj["iscrowd"] = 1
    check_dicts([crowd, entry("b.jpg", [[0, 0, 5, 5]])], 4, 3)
    assert not caplog.messages
