import copy
import itertools
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode

from detr.data.annotations import clean_dicts
from detr.data.checks import check_classes, check_dicts, check_same_classes
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.loading import check_files, check_registered, load_dataset, load_dicts
from detr.data.statistics import box_statistics, warn_of_surplus
from detr.errors import InputError


def entry(path, boxes=(), category=0, size=(32, 24)):
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category} for box in boxes]
    return {"file_name": str(path), "width": size[0], "height": size[1], "annotations": annotations}


def test_an_unknown_data_set_gets_a_suggestion():
    with pytest.raises(InputError, match=r"'coco_2017_trian' is not registered; did you mean coco_2017_train"):
        check_registered("coco_2017_trian")


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("{root}/coco/gone.json", r"DETECTRON2_DATASETS, now .*, at its folder$"),
        ("{root}_mine/gone.json", r"restore it, or register the data set with the right path$"),
        ("mine/gone.json", r"relative paths begin in the folder of the command, now /.*; register it"),
    ],
)
def test_missing_annotations_are_named(path, hint, tmp_path, monkeypatch, registered):
    """Detectron2's variable is for data sets that are registered in its folder, not for paths of one's own."""
    root = tmp_path / "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    DatasetCatalog.register("checks_missing", lambda: [])
    registered.append("checks_missing")
    path = path.format(root=root)
    MetadataCatalog.get("checks_missing").set(json_file=path, image_root=str(tmp_path))
    with pytest.raises(InputError, match=rf"its json_file .*gone\.json does not exist: .*{hint}"):
        check_files("checks_missing")


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
        (coco(labels=(1, 3)), r"annotation 2 has the category_id 3, which is no id of the categories"),
        ("{ not JSON", "cannot be read as JSON .*JSONDecodeError"),
        ({**coco(), "images": [], "annotations": []}, "the data set mine is empty"),
        (coco(labels=()), "no image of the data set mine has an object"),
    ],
)
def test_a_damaged_annotation_file_is_an_error(coco_set, content, reason):
    name = coco_set(content)
    with pytest.raises(InputError, match=reason) as error:
        load_dicts([name], filter_empty=True)
    assert "\n" not in str(error.value)
    assert "mine" in str(error.value)


def test_classes_in_another_order_are_an_error(coco_set):
    names = [coco_set(coco(), "first"), coco_set(coco(categories=((1, "dog"), (2, "cat"))), "second")]
    load_dicts(names[:1], False), load_dicts(names[1:], False)
    with pytest.raises(InputError, match="class 0 is 'cat' in the data set first, but 'dog' in second"):
        check_same_classes(names)
    check_same_classes(["shapes_train", "shapes_val"])


@pytest.mark.parametrize("classes", [[1, 2, 3, 4], [None], ["cat", ""]])
def test_classes_without_names_are_an_error(registered, classes):
    MetadataCatalog.get("mine").set(thing_classes=classes)
    DatasetCatalog.register("mine", list)
    registered.append("mine")
    with pytest.raises(InputError, match=r"mine has the class .* in its metadata: its name must be a text"):
        check_classes("mine", len(classes))


@pytest.mark.parametrize("classes", [7, "ab", True])
def test_classes_that_are_no_list_are_an_error(registered, classes):
    MetadataCatalog.get("mine").set(thing_classes=classes)
    DatasetCatalog.register("mine", list)
    registered.append("mine")
    with pytest.raises(InputError, match=r"mine has the thing_classes .* in its metadata: it must be a list of names"):
        check_classes("mine", 2)


@pytest.mark.parametrize("value", [[1], {1}, {}, 1.5, True, b"1", np.array(1)], ids=str)
def test_ids_of_images_without_a_reading_are_errors(registered, value):
    DatasetCatalog.register("mine", lambda: [{**entry("a.jpg"), "image_id": 0}, {**entry("b.jpg"), "image_id": value}])
    registered.append("mine")
    with pytest.raises(
        InputError, match=r"^b\.jpg of the data set mine has the image_id .*: it must be a whole number"
    ):
        load_dataset("mine")


def test_ids_of_images_become_pythons_own(registered):
    ids = [0, np.int64(1), 2.0]
    DatasetCatalog.register("mine", lambda: [{**entry("a.jpg"), "image_id": value} for value in ids])
    registered.append("mine")
    assert [(type(x["image_id"]), x["image_id"]) for x in load_dataset("mine")] == [(int, 0), (int, 1), (int, 2)]


def test_a_class_that_is_listed_twice_is_warned_of(coco_set, caplog):
    name = coco_set(coco(categories=((1, "cat"), (2, "cat"))))
    load_dicts([name], filter_empty=False)
    check_classes(name, 2)
    assert "mine: the class cat is listed more than once" in caplog.text


def test_another_number_of_classes_is_an_error():
    with pytest.raises(InputError, match=r"NUM_CLASSES is 5, but .*shapes_train has 4 classes .*NUM_CLASSES 4"):
        check_classes("shapes_train", 5)
    check_classes("shapes_train", 4)


BOX = [0, 0, 5, 5]
MISSING = "missing"  # the key is left out
NO_BOXES = [[1, 2, 3], ["a", 1, 2, 3], ["1", "2", "3", "4"], [float("nan"), 1, 2, 3], [1, 2, 3, float("inf")], None, 7]
NO_BOXES += [[True] * 4, np.ones(4, dtype=bool), torch.ones(4), [torch.tensor(1.0), 2, 3, 4], range(4)]
NO_BOXES += [[1, 2, 3, 4, 5], [[1, 2, 3, 4]], "1, 2, 3, 4", [10**400, 0, 1, 1], np.zeros((1, 4)), {}]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *[(key, MISSING, f"without '{key}'") for key in ("bbox", "bbox_mode", "category_id")],
        *[("bbox", box, "with the bbox .*: it must be 4 finite numbers") for box in NO_BOXES],
        ("bbox", [0, 0, 1e30, 5], r"is 32 x 24 pixels .*the bbox \[0, 0, 1e\+30, 5\]"),
        *[
            ("bbox_mode", mode, "with the bbox_mode")
            for mode in (BoxMode.XYWHA_ABS, 9, "XYXY_ABS", None, True, np.array(1))
        ],
        ("category_id", 4, r"of category 4, outside \[0, 4\)"),
        ("category_id", -1, "of category -1, outside"),
        *[
            ("category_id", label, "with the category_id")
            for label in (1.5, "1", None, float("nan"), [1], True, np.array(1), 2**63, 10**400)
        ],
        *[("iscrowd", value, "with the iscrowd") for value in (2, -1, "yes", 0.5, [1])],
        *[("segmentation", x, r"without a segmentation.*MODEL\.MASK_ON False") for x in (MISSING, None, [], [BOX])],
        *[
            ("segmentation", x, "with a segmentation that cannot be read")
            for x in (
                7,
                "polygon",
                [[0, 0, 5, 0, "5", 5]],
                {"size": [24, 32]},
                {"size": [24, 32], "counts": [0, 10**400]},
            )
        ],
        *[
            ("segmentation", [[0, 0, x, 0, 5, 5]], "with a segmentation that cannot be read")
            for x in (1e8, float("nan"), None, "5")
        ],
    ],
    ids=lambda x: str(x)[:40],
)
def test_the_first_image_with_a_bad_object_is_named(key, value, message):
    good = {**entry("", [BOX])["annotations"][0], "segmentation": [[0, 0, 5, 0, 5, 5]]}
    bad = {**good, key: value}
    if value is MISSING:
        del bad[key]
    objects = {"good.jpg": [good], "b.jpg": [good, bad], "a.jpg": [bad]}
    dicts = [{**entry(name), "annotations": annotations} for name, annotations in objects.items()]
    with pytest.raises(InputError, match=rf"^b\.jpg (has an object )?{message}") as error:
        check_dicts("mine", clean_dicts(dicts), 4, masks=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    if key == "segmentation":
        check_dicts("mine", clean_dicts(dicts), 4)


def clean(**changes):
    """An annotation with these values as it is after cleaning."""
    obj = {**entry("", [BOX])["annotations"][0], **changes}
    (x,) = clean_dicts([{**entry("a.jpg"), "annotations": [obj]}])
    return x["annotations"][0]


def test_values_of_one_reading_are_taken():
    assert clean(category_id=2.0)["category_id"] == 2
    assert clean(category_id=np.int64(2))["category_id"] == 2
    assert [clean(iscrowd=x)["iscrowd"] for x in (None, False, 0, "0", 0.0, True, 1, "1")] == [0] * 5 + [1] * 3
    assert list(clean(bbox=np.array([1, 2, 3, 4], dtype=np.uint8))["bbox"]) == [1, 2, 3, 4]
    assert clean(bbox=(1, 2, 3, 4), bbox_mode=0.0)["bbox_mode"] is BoxMode.XYXY_ABS
    relative = clean(bbox=[0.25, 0.5, 0.5, 0.25], bbox_mode=BoxMode.XYWH_REL)
    assert (relative["bbox"], relative["bbox_mode"]) == ([8, 12, 16, 6], BoxMode.XYWH_ABS)


def test_fields_of_images_of_one_reading_are_taken(images):
    sizes = {"width": "32", "height": 24.0}
    (x,) = clean_dicts([{"file_name": images[0], **sizes, "annotations": None}])
    assert x == {"file_name": str(images[0]), "width": 32, "height": 24, "annotations": []}
    assert clean_dicts([{"file_name": str(images[0]), "width": None}]) == [x]  # from the file


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("file_name", value) for value in (None, "", 7, 10**400, "a\nb.jpg", "\0", "x" * 3000)],
        *[(key, value) for key in ("width", "height") for value in (0, -1, "wide", 31.5, [32], True, 10**400)],
        *[(key, value) for key in ("annotations", "segments_info") for value in ({}, "none", 3)],
    ],
    ids=lambda x: str(x)[:40],
)
def test_fields_of_images_without_a_reading_are_errors(key, value):
    x = {**entry("a.jpg", [BOX]), key: value}
    where = "image 1 of the data set mine" if key == "file_name" else r"a\.jpg"
    with pytest.raises(InputError, match=rf"^{where} has .*{key}") as error:
        clean_dicts([entry("b.jpg", [BOX]), x], "mine")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_the_data_set_that_is_given_stays_as_it_is():
    dicts = [{**entry("a.jpg", [BOX]), "width": "32"}, {"file_name": "b.jpg"}]
    dicts[0]["annotations"][0]["category_id"] = 1.0
    before = copy.deepcopy(dicts)
    clean_dicts(dicts)
    assert dicts == before


@pytest.mark.parametrize("box", [[0, 0, 0, 0], [5, 5, -3, 4], [40, 0, 5, 5]])
def test_a_data_set_whose_boxes_are_all_dropped_is_an_error(box):
    crowd = entry("c.jpg", [BOX])
    crowd["annotations"][0]["iscrowd"] = 1
    dicts = clean_dicts([entry("a.jpg", [box, box]), {"file_name": "b.jpg"}, crowd])
    with pytest.raises(InputError, match=r"no object is left in the data set mine: of its 3 .* 1 are crowds, and 2"):
        check_dicts("mine", dicts, 4)
    check_dicts("mine", clean_dicts([entry("a.jpg")]), 4)  # without annotations, as a test set may be


def test_surplus_objects_are_counted(caplog):
    caplog.set_level(logging.WARNING)
    warn_of_surplus([entry("a.jpg"), entry("b.jpg"), entry("c.jpg")], [3, 4, 6], 3)
    assert caplog.messages[0].startswith("2 images have more objects than the 3 queries, up to 6 in c.jpg")


def test_the_boxes_that_are_counted_are_those_that_the_mapper_drops(caplog, images):
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
    row = box_statistics("mine", clean_dicts(dicts), ["cat"])
    kept = sum(len(mapper(x)["instances"]) for x in dicts)
    dropped = sum(len(x["annotations"]) for x in dicts) - kept
    assert 100 < dropped < 380
    assert row["boxes without area in the image, dropped"] == dropped
    assert row["objects"] == kept
    assert caplog.messages[0] == (
        f"mine: {dropped} of 480 boxes are dropped, neither learned nor evaluated, because they have no width or no "
        f"height inside the image; the first is in {images[0]}"
    )
