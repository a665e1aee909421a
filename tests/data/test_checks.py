import json
import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic
from detectron2.structures import BoxMode
from PIL import Image

from detr.data.checks import (
    check_classes,
    check_dicts,
    check_files,
    check_images,
    check_registered,
    check_same_classes,
    check_same_task,
    load_dicts,
)
from detr.data.panoptic_checks import check_panoptic_truth, check_segments
from detr.errors import InputError


def entry(path, boxes=(), category=0, size=(32, 24)):
    annotations = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category} for box in boxes]
    return {"file_name": str(path), "width": size[0], "height": size[1], "annotations": annotations}


@pytest.fixture
def images(tmp_path):
    """Four readable JPEGs of 32 x 24 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    paths = [tmp_path / f"{index}.jpg" for index in range(4)]
    for path in paths:
        Image.fromarray(noise).save(path)
    return paths


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
def coco_set(tmp_path, images):
    """coco_set(content) registers a user's data set in COCO format and returns its name."""
    names = []

    def register(content, name="mine"):
        path = tmp_path / f"{name}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        register_coco_instances(name, {}, str(path), str(tmp_path))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


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


def test_classes_of_a_panoptic_set_are_things_and_stuff():
    check_classes("shapes_train_panoptic", 7)
    check_classes("coco_2017_train_panoptic", 133)
    check_same_classes(["shapes_train_panoptic", "shapes_val_panoptic"])
    with pytest.raises(InputError, match=r"shapes_train_panoptic has 7 classes \(disc, square, \.\.\., grass\)"):
        check_classes("shapes_train_panoptic", 4)


def test_a_separated_set_is_told_with_the_one_to_take():
    with pytest.raises(InputError, match=r"coco_2017_val_panoptic_separated .*which coco_2017_val_panoptic has"):
        check_classes("coco_2017_val_panoptic_separated", 133)


def test_panoptic_sets_are_not_mixed_with_others():
    check_same_task(["shapes_train_panoptic", "shapes_val_panoptic"])
    check_same_task(["shapes_train", "shapes_val"])
    with pytest.raises(InputError, match="shapes_val_panoptic, which is panoptic, and shapes_train, which is not"):
        check_same_task(["shapes_train", "shapes_val_panoptic"])


@pytest.fixture
def panoptic_set(tmp_path, images):
    """panoptic_set(panoptic JSON, instances JSON) registers a user's panoptic set and returns its name."""
    names = []
    pngs = tmp_path / "pngs"
    pngs.mkdir()

    def register(panoptic, instances=None, pixels=(1, 2)):
        name = f"my_panoptic_{len(names)}"
        rgb = np.zeros((24, 32, 3), dtype=np.uint8)
        rgb[:12, :, 0], rgb[12:, :, 0] = pixels
        Image.fromarray(rgb).save(pngs / "0.png")
        for kind, content in (("panoptic", panoptic), ("instances", instances)):
            (tmp_path / f"{kind}.json").write_text(json.dumps(content))
        metadata = {
            "thing_classes": ["cat"],
            "stuff_classes": ["cat", "grass"],
            "thing_dataset_id_to_contiguous_id": {1: 0},
            "stuff_dataset_id_to_contiguous_id": {5: 1},
        }
        json_file = str(tmp_path / "instances.json") if instances else None
        folders = str(tmp_path), str(pngs)
        register_coco_panoptic(name, metadata, *folders, str(tmp_path / "panoptic.json"), json_file)
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def panoptic_json(segments=((1, 1, 0), (2, 5, 0)), categories=((1, 1), (5, 0))):
    """One image with segments (id, category, iscrowd), and categories (id, isthing)."""
    infos = [{"id": i, "category_id": category, "iscrowd": crowd} for i, category, crowd in segments]
    return {
        "images": [{"id": 7, "file_name": "0.jpg"}],
        "annotations": [{"image_id": 7, "file_name": "0.png", "segments_info": infos}],
        "categories": [{"id": i, "name": str(i), "isthing": isthing} for i, isthing in categories],
    }


def check_all(name):
    dicts = load_dicts([name], filter_empty=True)
    check_classes(name, 2)
    check_segments(dicts, 2, 20)
    check_panoptic_truth(name, dicts, masks=True, maps=True)
    check_images(dicts, panoptic=True)
    return dicts


def test_a_good_panoptic_set_passes(panoptic_set, caplog):
    instances = coco(categories=[(1, "cat")], labels=[1])
    instances["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    assert len(check_all(panoptic_set(panoptic_json(), instances))) == 1
    assert len(check_all(panoptic_set(panoptic_json()))) == 1  # without instances
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(("name", "number"), [("shapes_val_panoptic", 7), ("coco_panoptic", 133)])
def test_shapes_and_coco_pass(name, number, shapes_root, request):
    if name == "coco_panoptic":
        name = request.getfixturevalue(name)
    dicts = load_dicts([name], filter_empty=True)
    check_classes(name, number)
    check_segments(dicts, number, 100)
    check_panoptic_truth(name, dicts, masks=True, maps=True)
    check_images(dicts, panoptic=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (panoptic_json(segments=[(1, 3, 0)]), r"category 3 is in none of the metadata's .*panoptic\.json"),
        ({"annotations": [{"image_id": 7, "file_name": "0.png"}]}, r"KeyError: 'segments_info'.*panoptic\.json"),
        (panoptic_json(segments=[]), "no segment at all"),
        (panoptic_json(categories=[(1, 1)]), r"panoptic\.json .*\(stuff\) has categories with the ids , but .* 5"),
        (panoptic_json(categories=[(1, 0), (5, 0)]), r"\(thing\) has categories with the ids , but its metadata 1"),
        (panoptic_json(segments=[(1, 1, 0)]), r"panoptic\.json has no stuff segment but crowds"),
        (panoptic_json(segments=[(1, 1, 1), (2, 5, 0)]), r"panoptic\.json has no thing segment but crowds"),
    ],
)
def test_a_bad_panoptic_file_is_told(panoptic_set, content, message):
    with pytest.raises(InputError, match=message) as error:
        check_all(panoptic_set(content))
    assert "\n" not in str(error.value)


def test_segments_without_a_flag_for_crowds_have_no_pq(panoptic_set):
    content = panoptic_json()
    del content["annotations"][0]["segments_info"][1]["iscrowd"]
    with pytest.raises(InputError, match=r"0\.jpg has a segment without 'iscrowd' in .*panoptic\.json"):
        check_all(panoptic_set(content))


def test_instances_of_a_panoptic_set_must_fit_it(panoptic_set):
    name = panoptic_set(panoptic_json(), coco(labels=[1]))
    with pytest.raises(InputError, match=r"instances\.json .*categories with the ids 1, 2, but its metadata 1"):
        check_all(name)
    name = panoptic_set(panoptic_json(), coco(categories=[(1, "cat")], labels=[1]))
    with pytest.raises(InputError, match=r"0\.jpg \(in .*instances\.json\) has an object without a segmentation"):
        check_all(name)


def test_missing_panoptic_files_are_told(panoptic_set, tmp_path):
    name = panoptic_set(panoptic_json())
    dicts = load_dicts([name], filter_empty=False)
    png = tmp_path / "pngs" / "0.png"
    png.unlink()
    with pytest.raises(InputError, match=r"the panoptic PNG .*0\.png does not exist"):
        check_images(dicts, panoptic=True)
    with pytest.raises(InputError, match=r"cannot be loaded \(.*0\.png does not exist\)"):
        load_dicts([name], filter_empty=False)
    png.parent.rmdir()
    with pytest.raises(InputError, match=r"its panoptic_root .*pngs does not exist"):
        load_dicts([name], filter_empty=False)


def test_panoptic_pngs_of_another_size_or_kind_are_found(panoptic_set, tmp_path):
    dicts = load_dicts([panoptic_set(panoptic_json())], filter_empty=False)
    png = tmp_path / "pngs" / "0.png"
    Image.new("RGB", (31, 24)).save(png)
    with pytest.raises(InputError, match=r"0\.png is 31 x 24 pixels .*0\.jpg is 32 x 24"):
        check_images(dicts, panoptic=True)
    png.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"cannot read the image .*0\.png"):
        check_images(dicts, panoptic=True)
    check_images(dicts)  # not asked for


def test_crowds_of_a_panoptic_set_need_queries(caplog):
    segments = [{"id": i, "category_id": 0, "iscrowd": 1} for i in range(4)]
    check_segments([{"file_name": "a.jpg", "pan_seg_file_name": "a.png", "segments_info": segments}], 2, 3)
    assert "more objects than the 3 queries, up to 4 in a.jpg" in caplog.text


@pytest.mark.parametrize("key", ["pan_seg_file_name", "segments_info", "id", "category_id"])
def test_incomplete_panoptic_dicts_name_the_file(key):
    segment = {"id": 1, "category_id": 0}
    x = {"file_name": "a.jpg", "pan_seg_file_name": "a.png", "segments_info": [segment]}
    whole = {"file_name": "b.jpg", "pan_seg_file_name": "b.png", "segments_info": [dict(segment)]}
    (x if key in x else segment).pop(key)
    with pytest.raises(InputError, match=rf"a\.jpg has (no|a segment without) '{key}'"):
        check_segments([whole, x], 2, 3)
