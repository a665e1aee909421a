"""Files in COCO's format that are not what they should be: one line with the first offender, or the one reading."""

import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from detr.data.annotations import clean_dicts
from detr.data.coco_file import class_ids, coco_dicts, read_coco
from detr.errors import InputError

KINDS = ("images", "categories", "annotations")


def content(**changes):
    """Two images, two categories, two annotations."""
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 32, "height": 24} for i in (3, 1)],
        "categories": [{"id": 5, "name": "dog"}, {"id": 2, "name": "cat"}],
        "annotations": [
            {"id": 10, "image_id": 1, "category_id": 5, "bbox": [1, 2, 8, 9], "area": 72, "iscrowd": 0},
            {"id": 11, "image_id": 3, "category_id": 2, "bbox": [3, 4, 5, 6], "area": 30, "iscrowd": 1},
        ],
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def to_file(value):
        path = tmp_path / "truth.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(path)

    return to_file


def dicts_of(path):
    read = read_coco(path)
    return coco_dicts(read, path, "images", class_ids(read))


def test_the_dicts_are_detectron2s(write):
    """Ids with gaps, in another order than the file's, with polygons, an RLE and keypoints."""
    value = content()
    value["annotations"][0]["segmentation"] = [[1, 2, 9, 2, 9, 11], [1, 1, 2, 2]]
    value["annotations"][0]["keypoints"] = [3, 4, 2, 5, 6, 1]
    value["annotations"][1]["segmentation"] = {"size": [24, 32], "counts": [0, 24 * 32]}
    path = write(value)
    expected = load_coco_json(path, "images", "of_detectron2")
    MetadataCatalog.remove("of_detectron2")
    dicts = dicts_of(path)
    assert [x["image_id"] for x in dicts] == [1, 3]
    for x, y in zip(dicts, expected, strict=True):
        for obj, other in zip(x["annotations"], y["annotations"], strict=True):
            # Detectron2 leaves out polygons and compresses runs while it loads, the mapper here when it reads them.
            obj.pop("segmentation"), other.pop("segmentation")
    assert dicts == expected


def change(kind, index, **keys):
    value = content()
    value[kind][index].update(keys)
    return value


def without(kind, index, key):
    value = content()
    del value[kind][index][key]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1, 2", "cannot be read as JSON"),
        ("[]", "holds a list: COCO's format is a dict"),
        ("[" * 100_000, "cannot be read as JSON"),
        *[(content(**{kind: 3}), f"has {kind} 3: it must be a list") for kind in KINDS],
        *[(content(**{kind: [7]}), f"number 0 of the {kind} is 7: it must be a dict") for kind in KINDS],
        (content(annotations=None), "has annotations None"),
        (content(categories=[], annotations=[]), "has no categories: list the classes there"),
        ({"categories": []}, "has images None"),
        (change("images", 1, id=3), "the id 3 occurs more than once in the images; was the file merged"),
        (change("annotations", 1, id=10), "the id 10 occurs more than once in the annotations"),
        (change("categories", 1, id=5), "the id 5 occurs more than once in the categories"),
        (change("images", 1, id="1"), "images have ids of different types, 3 and '1'"),
        (change("images", 1, id=None), "number 1 of the images has the id None"),
        (without("images", 0, "id"), "number 0 of the images has the id None"),
        *[(change("images", 1, id=x), "number 1 of the images has the id") for x in (1.5, True, [1], 2**64)],
        (change("annotations", 1, image_id=4), "annotation 11 has the image_id 4, which is no id of the images"),
        (
            change("annotations", 1, image_id="3"),
            "annotation 11 has the image_id '3', .*, though 3, which is of an",
        ),
        (without("annotations", 1, "image_id"), "annotation 11 has the image_id None"),
        (change("annotations", 1, category_id=9), "annotation 11 has the category_id 9, which is no id of the categor"),
        (without("annotations", 0, "category_id"), "annotation 10 has the category_id None"),
        *[(change("categories", 0, name=x), "category 5 has the name") for x in (None, "", [1], {}, True)],
        (without("categories", 0, "name"), "category 5 has the name None"),
        *[(change("images", 0, file_name=x), "image 3 has the file_name") for x in (None, "", 7, ["3.jpg"])],
        (without("images", 0, "file_name"), "image 3 has the file_name None"),
    ],
    ids=lambda x: str(x)[:50],
)
def test_the_first_offender_is_named(write, value, message):
    path = write(value)
    with pytest.raises(InputError, match=message) as error:
        dicts_of(path)
    assert str(error.value).startswith(path)
    assert "\n" not in str(error.value)


def test_what_has_one_reading_works(write):
    value = content(annotations=[{"image_id": 3.0, "category_id": 5.0, "bbox": [1, 2, 8, 9], "iscrowd": None}])
    value["categories"][0]["name"] = 7
    value["images"][1] |= {"id": 1.0, "width": None}
    (empty, one) = dicts_of(write(value))
    assert (empty["image_id"], empty["annotations"]) == (1, [])
    assert (one["image_id"], one["annotations"][0]["category_id"]) == (3, 1)
    assert read_coco(write(value))["categories"][0]["name"] == "7"
    texts = content()
    for image in texts["images"]:
        image["id"] = f"image {image['id']}"
    for annotation in texts["annotations"]:
        annotation["image_id"] = f"image {annotation['image_id']}"
    assert [x["image_id"] for x in dicts_of(write(texts))] == ["image 1", "image 3"]


def test_a_path_need_not_be_text(tmp_path, write):
    path = Path(write(content()))
    assert dicts_of(path) == dicts_of(str(path))


def test_ignored_objects_are_crowds(write, caplog):
    """COCO's evaluation overwrites ``ignore``, as of VOC's difficult objects, by ``iscrowd``."""
    dicts = dicts_of(write(change("annotations", 0, ignore=1)))
    assert [obj["iscrowd"] for x in dicts for obj in x["annotations"]] == [1, 1]
    assert "1 annotations with 'ignore' are crowds" in caplog.text


def test_a_file_without_annotations_is_a_test_set(write):
    value = content()
    del value["annotations"]
    assert [x["annotations"] for x in dicts_of(write(value))] == [[], []]


@pytest.mark.parametrize("segmentation", [[[1, 2, 9, 11]], [[1, 2, 9, 2, 9]], [[]], [], None, "text", 7])
def test_no_object_is_lost_for_its_segmentation(write, segmentation):
    dicts = dicts_of(write(change("annotations", 0, segmentation=segmentation)))
    assert clean_dicts(dicts)[0]["annotations"][0]["bbox"] == [1, 2, 8, 9]
