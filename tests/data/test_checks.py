import json
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from PIL import Image

from detr.data.checks import (
    check_classes,
    check_dicts,
    check_files,
    check_images,
    check_registered,
    check_same_classes,
    load_dicts,
)
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


def test_a_users_set_loads_and_its_classes_are_known_then(coco_set):
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
def test_a_damaged_annotation_file_is_told(coco_set, content, reason):
    name = coco_set(content)
    with pytest.raises(InputError, match=f"the data set mine cannot be loaded .*({reason})") as error:
        load_dicts([name], filter_empty=True)
    assert "\n" not in str(error.value)


def test_classes_in_another_order_are_told(coco_set):
    names = [coco_set(coco(), "first"), coco_set(coco(categories=((1, "dog"), (2, "cat"))), "second")]
    load_dicts(names[:1], False), load_dicts(names[1:], False)
    with pytest.raises(InputError, match="class 0 is 'cat' in the data set first, but 'dog' in second"):
        check_same_classes(names)
    check_same_classes(["shapes_train", "shapes_val"])


def test_an_object_without_a_box_names_the_file():
    broken = entry("x.jpg", [[0, 0, 5, 5]])
    del broken["annotations"][0]["bbox"]
    with pytest.raises(InputError, match=r"x\.jpg has an object without 'bbox'"):
        check_dicts([broken], 4, 20)


@pytest.mark.parametrize("box", [[1, 2, 3], ["a", 1, 2, 3], [float("nan"), 1, 2, 3], None])
def test_a_box_that_is_none_names_the_file(box):
    with pytest.raises(InputError, match=r"x\.jpg has an object with the bbox .*: it must be 4 finite numbers"):
        check_dicts([entry("x.jpg", [box])], 4, 20)


def test_a_training_set_without_any_object_is_told():
    with pytest.raises(InputError, match="no object at all"):
        check_dicts([entry("a.jpg"), entry("b.jpg")], 4, 20)


def test_another_number_of_classes_is_told_with_the_remedy():
    with pytest.raises(InputError, match=r"NUM_CLASSES is 5, but .*shapes_train has 4 classes .*NUM_CLASSES 4"):
        check_classes("shapes_train", 5)
    check_classes("shapes_train", 4)


def test_a_label_outside_the_classes_names_the_file():
    with pytest.raises(InputError, match=r"x\.jpg has an object of category 4, outside \[0, 4\)"):
        check_dicts([entry("x.jpg", [[0, 0, 5, 5]], category=4)], 4, 20)


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


def test_crowds_need_no_queries(caplog):
    crowd = entry("a.jpg", [[0, 0, 5, 5]] * 9)
    for obj in crowd["annotations"]:
        obj["iscrowd"] = 1
    check_dicts([crowd, entry("b.jpg", [[0, 0, 5, 5]])], 4, 3)
    assert not caplog.messages


def test_good_images_pass(images):
    check_images([entry(path) for path in images])


def test_missing_images_are_counted(images):
    images[1].unlink()
    images[2].unlink()
    with pytest.raises(InputError, match=r"1\.jpg does not exist \(and 1 more of 4\)"):
        check_images([entry(path) for path in images])


def test_an_image_that_is_cut_off_is_found(images):
    whole = images[3].read_bytes()
    images[3].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read the image .*3\.jpg \((?i:.*truncated)"):
        check_images([entry(path) for path in images])


@pytest.mark.parametrize("content", [b"", b"x", b"this is text"])
def test_a_file_that_is_no_image_is_found(images, content):
    images[2].write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read the image .*2\.jpg"):
        check_images([entry(path) for path in images])


def test_a_wrong_size_is_found(images):
    with pytest.raises(InputError, match=r"0\.jpg is 32 x 24 pixels .* says 24 x 32"):
        check_images([entry(images[0], size=(24, 32))])


def test_an_image_that_exif_turns_has_its_sides_swapped(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(path, exif=exif)
    check_images([entry(path, size=(24, 32))])
    with pytest.raises(InputError, match="24 x 32 pixels"):
        check_images([entry(path, size=(32, 24))])


@pytest.mark.parametrize("segmentation", [{}, {"segmentation": []}, {"segmentation": None}])
def test_masks_want_a_segmentation_of_every_object(segmentation):
    broken = entry("x.jpg", [[0, 0, 5, 5]])
    broken["annotations"][0].update(segmentation)
    with pytest.raises(InputError, match=r"x\.jpg has an object without a segmentation, .*MODEL\.MASK_ON False"):
        check_dicts([broken], 4, 20, masks=True)
    check_dicts([broken], 4, 20, masks=False)


# Panoptic sets
