import json
import logging
import shutil

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from PIL import Image

from detr.data.checks import check_classes, check_same_classes, check_same_task
from detr.data.image_checks import check_images, check_pngs
from detr.data.loading import load_dicts
from detr.data.panoptic_checks import check_panoptic_truth, check_segments
from detr.errors import InputError
from tests.data.test_checks import coco


def test_classes_of_a_panoptic_set_are_things_and_stuff():
    check_classes("shapes_train_panoptic", 7)
    check_classes("coco_2017_train_panoptic", 133)
    check_same_classes(["shapes_train_panoptic", "shapes_val_panoptic"])
    with pytest.raises(InputError, match=r"shapes_train_panoptic has 7 classes \(disc, square, \.\.\., grass\)"):
        check_classes("shapes_train_panoptic", 4)


def test_a_separated_set_names_the_one_to_take():
    with pytest.raises(InputError, match=r"coco_2017_val_panoptic_separated .*which coco_2017_val_panoptic has"):
        check_classes("coco_2017_val_panoptic_separated", 133)


def test_panoptic_sets_are_not_mixed_with_others():
    check_same_task(["shapes_train_panoptic", "shapes_val_panoptic"])
    check_same_task(["shapes_train", "shapes_val"])
    with pytest.raises(InputError, match="shapes_val_panoptic, which is panoptic, and shapes_train, which is not"):
        check_same_task(["shapes_train", "shapes_val_panoptic"])


@pytest.fixture
def panoptic_set(tmp_path, images, registered):
    """panoptic_set(panoptic JSON, instances JSON) registers a user's panoptic set and returns its name."""
    pngs = tmp_path / "pngs"
    pngs.mkdir()

    def register(panoptic, instances=None, pixels=(1, 2)):
        name = f"my_panoptic_{len(registered)}"
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
        registered.append(name)
        return name

    return register


def panoptic_json(segments=((1, 1, 0), (2, 5, 0)), categories=((1, 1), (5, 0)), image_id=7):
    """One image with segments (id, category, iscrowd), and categories (id, isthing)."""
    infos = [{"id": i, "category_id": category, "iscrowd": crowd} for i, category, crowd in segments]
    return {
        "images": [{"id": 7, "file_name": "0.jpg"}],
        "annotations": [{"image_id": image_id, "file_name": "0.png", "segments_info": infos}],
        "categories": [{"id": i, "name": str(i), "isthing": isthing} for i, isthing in categories],
    }


def check_all(name):
    dicts = load_dicts([name], filter_empty=True)
    check_classes(name, 2)
    check_segments(dicts, 2)
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
    check_segments(dicts, number)
    check_panoptic_truth(name, dicts, masks=True, maps=True)
    check_images(dicts, panoptic=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (panoptic_json(segments=[(1, 3, 0)]), r"panoptic\.json: number 0 .*category_id 3, which is in none of"),
        (
            {**panoptic_json(), "annotations": [{"image_id": 7, "file_name": "0.png"}]},
            r"panoptic\.json: number 0 .*segments_info None",
        ),
        (panoptic_json(segments=[]), "no segment at all"),
        (panoptic_json(categories=[(1, 1)]), r"panoptic\.json .*\(stuff\) has categories with the ids , but .* 5"),
        (panoptic_json(categories=[(1, 0), (5, 0)]), r"\(thing\) has categories with the ids , but its metadata 1"),
        ({**panoptic_json(), "images": None}, r"panoptic\.json has images None: it must be a list"),
        ({**panoptic_json(), "images": [{"id": [7]}]}, r"panoptic\.json: number 0 of the images has the id \[7\]"),
        (panoptic_json(categories=[({}, 1), (5, 0)]), r"panoptic\.json: number 0 of the categories has the id \{\}"),
        (panoptic_json(image_id="7"), r"the image with the id '?7'? is not both in the data set .*panoptic\.json"),
        (panoptic_json(categories=[(1, 2), (5, 0)]), r"\(thing\) has categories with the ids , but its metadata 1"),
        (panoptic_json(segments=[(1, 1, 0)]), r"panoptic\.json has no stuff segment but crowds"),
        (panoptic_json(segments=[(1, 1, 1), (2, 5, 0)]), r"panoptic\.json has no thing segment but crowds"),
    ],
)
def test_a_bad_panoptic_file_is_an_error(panoptic_set, content, message):
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
    with pytest.raises(InputError, match=r"0\.jpg has an object without a segmentation"):
        check_all(name)


def test_missing_panoptic_files_are_named(panoptic_set, tmp_path):
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


@pytest.mark.parametrize("key", ["pan_seg_file_name", "segments_info", "id", "category_id"])
def test_incomplete_panoptic_dicts_name_the_file(key):
    segment = {"id": 1, "category_id": 0}
    x = {"file_name": "a.jpg", "pan_seg_file_name": "a.png", "segments_info": [segment]}
    whole = {"file_name": "b.jpg", "pan_seg_file_name": "b.png", "segments_info": [dict(segment)]}
    (x if key in x else segment).pop(key)
    with pytest.raises(InputError, match=rf"a\.jpg has (no|a segment without) '{key}'"):
        check_segments([whole, x], 2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *[("pan_seg_file_name", value, "has the pan_seg_file_name") for value in (7, b"", [], np.False_, "0\n.png")],
        *[("iscrowd", value, "has a segment with the iscrowd") for value in (2, "yes", [1], np.array([]))],
    ],
    ids=str,
)
def test_fields_of_panoptic_dicts_without_a_reading_are_errors(key, value, message):
    x = {"file_name": "a.jpg", "pan_seg_file_name": "a.png", "segments_info": [{"id": 1, "category_id": 0}]}
    (x if key in x else x["segments_info"][0])[key] = value
    with pytest.raises(InputError, match=rf"a\.jpg {message}"):
        check_segments([x], 2)


@pytest.mark.parametrize("value", [None, [0], "ab", {1: 1}])
def test_panoptic_ids_that_are_no_dict_are_an_error(panoptic_set, value):
    name = panoptic_set(panoptic_json())
    vars(MetadataCatalog.get(name))["thing_dataset_id_to_contiguous_id"] = value
    with pytest.raises(InputError, match=rf"the panoptic data set {name} has the things .*Detr needs things as 0, 1"):
        check_classes(name, 2)


def test_an_area_that_is_not_that_of_the_pixels_is_an_error(panoptic_set):
    content = panoptic_json()
    for segment in content["annotations"][0]["segments_info"]:
        segment["area"] = 12 * 32
    check_pngs(load_dicts([panoptic_set(content)], filter_empty=False))
    segment["area"] += 1
    with pytest.raises(InputError, match=r"0\.png has 384 pixels of the segment 2, but its JSON gives the area 385"):
        check_pngs(load_dicts([panoptic_set(content)], filter_empty=False))


def test_maps_of_one_name_are_an_error(panoptic_set, tmp_path):
    """Detectron2's evaluator would write the second over the first."""
    content = panoptic_json()
    for part in "ab":
        (tmp_path / part).mkdir(), (tmp_path / "pngs" / part).mkdir()
    name = panoptic_set(content)
    for part in "ab":
        (
            shutil.copy(tmp_path / "0.jpg", tmp_path / part),
            shutil.copy(tmp_path / "pngs" / "0.png", tmp_path / "pngs" / part),
        )
    (annotation,) = content["annotations"]
    content["annotations"] = [
        {**annotation, "image_id": i, "file_name": f"{part}/0.png"} for i, part in enumerate("ab")
    ]
    name = panoptic_set(content)
    with pytest.raises(InputError, match=rf"a/0\.jpg and .*b/0\.jpg of the data set {name} have one name"):
        check_panoptic_truth(name, load_dicts([name], filter_empty=False), masks=False, maps=True)
