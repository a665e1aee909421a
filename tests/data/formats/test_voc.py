"""Pascal VOC's layouts, and boxes computed by hand."""

import logging

import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances
from detectron2.structures import BoxMode

from detr.data.formats import recognize
from detr.errors import InputError
from tests.data.formats.making import xml_file, xml_object

DOG = xml_object("dog", (1, 1, 64, 24))  # the upper half of 64 x 48 pixels, which are counted from 1


@pytest.fixture
def voc(tmp_path, photo, text):
    """voc(objects) is a folder with an image and its XML side by side."""

    def make(*objects, **size):
        photo(tmp_path / "mine/a.jpg")
        text(tmp_path / "mine/a.xml", xml_file(objects or [DOG], **size))
        return tmp_path / "mine"

    return make


@pytest.fixture
def devkit(tmp_path, photo, text):
    """VOCdevkit/VOC2007 with the lists train, val and trainval, of a dog, a cat and both."""
    folder = tmp_path / "VOCdevkit/VOC2007"
    for name in "ab":
        photo(folder / f"JPEGImages/{name}.jpg")
    text(folder / "Annotations/a.xml", xml_file([DOG]))
    text(folder / "Annotations/b.xml", xml_file([xml_object("cat", (3, 5, 10, 9))]))
    for name, stems in {"train": "a", "val": "b", "trainval": "a\nb", "dog_train": "a  1"}.items():
        text(folder / f"ImageSets/Main/{name}.txt", f"{stems}\n")
    return folder


def objects(path, split="train"):
    return [obj for x in recognize(path).splits[split].dicts() for obj in x["annotations"]]


def test_a_box_counts_pixels_from_1_and_fills_the_last_one(voc):
    found = recognize(voc())
    assert (found.kind, found.class_names, list(found.splits)) == ("Pascal VOC", ["dog"], ["train"])
    (image,) = found.splits["train"].dicts()
    (obj,) = image.pop("annotations")
    assert image == {"file_name": str(voc() / "a.jpg"), "height": 48, "width": 64, "image_id": 0}
    assert obj == {"category_id": 0, "bbox": [0, 0, 64, 24], "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}


def test_boxes_are_those_of_detectron2(devkit):
    theirs = load_voc_instances(str(devkit), "trainval", ["cat", "dog"])
    for name in ("train", "val"):
        (devkit / f"ImageSets/Main/{name}.txt").unlink()
    ours = recognize(devkit).splits["train"].dicts()
    assert len(theirs) == 2
    for a, b in zip(theirs, ours, strict=True):
        assert all(a[key] == b[key] for key in ("file_name", "height", "width"))
        assert [{**obj, "iscrowd": 0} for obj in a["annotations"]] == b["annotations"]


def test_lists_are_splits_and_both_parents_are_recognized(devkit):
    for path in (devkit, devkit.parent):
        found = recognize(path)
        assert found.class_names == ["cat", "dog"]  # of all splits, whichever is asked for
        assert {split: len(part.dicts()) for split, part in found.splits.items()} == {"train": 1, "val": 1}


def test_trainval_is_for_training_where_there_is_no_train(devkit):
    (devkit / "ImageSets/Main/train.txt").unlink()
    assert len(recognize(devkit).splits["train"].dicts()) == 2


def test_two_years_are_an_error(devkit, photo, text):
    photo(devkit.parent / "VOC2012/JPEGImages/a.jpg")
    text(devkit.parent / "VOC2012/Annotations/a.xml", xml_file([DOG]))
    with pytest.raises(InputError, match="has VOC2007 and VOC2012: give the path of one"):
        recognize(devkit.parent)


def test_a_listed_image_that_is_missing_is_named(devkit, text):
    text(devkit / "ImageSets/Main/train.txt", "a\nc\n")
    with pytest.raises(InputError, match=r"train.txt, line 2: there is no image c in .*JPEGImages"):
        objects(devkit)


def test_difficult_objects_are_crowds(voc):
    assert [x["iscrowd"] for x in objects(voc(DOG, xml_object("dog", (1, 1, 5, 5), "<difficult>1</difficult>")))] == [
        0,
        1,
    ]


def test_numbers_with_decimals_and_exchanged_corners(voc):
    assert [x["bbox"] for x in objects(voc(xml_object("dog", (40.5, 24.0, 10.5, 4))))] == [[9.5, 3, 40.5, 24]]


def test_the_points_of_a_polygon_are_the_centers_of_pixels(voc):
    polygon = "<polygon><x1>1</x1><y1>1</y1><x2>64</x2><y2>1</y2><x3>64</x3><y3>24</y3></polygon>"
    (obj,) = objects(voc(xml_object("dog", (1, 1, 64, 24), polygon)))
    assert obj["bbox"] == [0, 0, 64, 24]
    assert obj["segmentation"] == [[0.5, 0.5, 63.5, 0.5, 63.5, 23.5]]


@pytest.mark.parametrize("size", [{"width": 0, "height": 0}, {"width": "", "height": ""}])
def test_a_missing_size_is_that_of_the_file(voc, size):
    (image,) = recognize(voc(**size)).splits["train"].dicts()
    assert (image["height"], image["width"]) == (48, 64)


@pytest.mark.parametrize(
    "folders", [("images", "annotations"), ("JPEGImages", "Annotations"), ("Images", "xml"), ("", "")]
)
def test_images_and_xml_in_two_folders_or_one(tmp_path, photo, text, folders):
    photo(tmp_path / folders[0] / "a.PNG")
    text(tmp_path / folders[1] / "a.xml", xml_file([DOG]))
    assert objects(tmp_path)[0]["bbox"] == [0, 0, 64, 24]


def test_roboflows_export(tmp_path, photo, text):
    text(tmp_path / "README.roboflow.txt", "pets")
    for name in ("train", "valid", "test"):
        photo(tmp_path / name / "a_jpg.rf.0123.jpg")
        text(tmp_path / name / "a_jpg.rf.0123.xml", xml_file([xml_object(f"of {name}", (1, 1, 9, 9))]))
    found = recognize(tmp_path)
    assert (found.kind, list(found.splits)) == ("Pascal VOC (Roboflow)", ["train", "val", "test"])
    assert found.class_names == ["of test", "of train", "of valid"]
    assert [obj["category_id"] for obj in objects(tmp_path, "val")] == [2]


def test_what_is_harmless_is_counted(voc, photo, text, caplog):
    folder = voc()
    photo(folder / "b.jpg")
    text(folder / "c.xml", xml_file([DOG]))
    with caplog.at_level(logging.WARNING):
        dicts = recognize(folder).splits["train"].dicts()
    assert [len(x["annotations"]) for x in dicts] == [1, 0]
    assert "1 of 2 images have no XML" in caplog.text
    assert (
        f"1 XML files are left out, because there is no image of their name; the first is {folder / 'c.xml'}"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>", "is no XML .*line 1"),
        ("<html></html>", "has the root <html>"),
        (xml_file([DOG.replace("dog", " ")]), "an object without a name"),
        (xml_file([DOG.replace("xmin", "left")]), "Missing 'xmin'"),
        (xml_file([xml_object("dog", (1, 1, "wide", 24))]), "'wide'"),
        (xml_file([xml_object("dog", (1, 1, "inf", 24))]), "'inf'"),
        (xml_file([xml_object("dog", (1, 1, 6, 24), "<polygon><x1>1</x1></polygon>")]), "the object 'dog'"),
        (xml_file(["<object><name>dog</name></object>"]), "Missing bndbox"),
        (xml_file([]), "has an object: check"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "is no XML"),
    ],
)
def test_a_bad_file_is_named(voc, text, content, message):
    folder = voc()
    text(folder / "a.xml", content)
    with pytest.raises(InputError, match=message) as error:
        objects(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_xml_of_other_images_is_an_error(voc):
    folder = voc()
    (folder / "a.jpg").rename(folder / "b.jpg")
    with pytest.raises(InputError, match=r"has 1 images, and none of them has an XML"):
        recognize(folder).splits["train"].dicts()


def test_two_images_of_one_xml_are_an_error(voc, photo):
    folder = voc()
    photo(folder / "a.png")
    with pytest.raises(InputError, match=r"a.jpg and a.png would have the same XML"):
        objects(folder)
