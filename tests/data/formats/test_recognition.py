"""Where COCO's files lie, and what is said of a path that holds no data set, or more than one."""

import json

import pytest

from detr.data.formats import recognize
from detr.errors import InputError
from tests.data.formats.making import xml_file, xml_object

BOX = [4, 6, 20, 30]


def coco(names=("cat", "dog"), used=1, image="a.jpg", first_id=1, group=None):
    """A content with one image and one object, of the category with the id ``used``."""
    categories = [{"id": first_id + i, "name": name, "supercategory": group or "none"} for i, name in enumerate(names)]
    if group:
        categories[0]["supercategory"] = "none"
    annotation = {"id": 1, "image_id": 7, "category_id": used, "bbox": BOX, "area": 600, "iscrowd": 0}
    images = [{"id": 7, "file_name": image, "width": 64, "height": 48}]
    return json.dumps({"images": images, "annotations": [annotation], "categories": categories})


@pytest.mark.parametrize(
    ("file", "image", "split"),
    [
        ("annotations/instances_train2017.json", "train2017/a.jpg", "train"),
        ("annotations/instances_val2017.json", "val2017/a.jpg", "val"),
        ("annotations/instances_train2017.json", "images/train2017/a.jpg", "train"),
        ("annotations/train.json", "images/train/a.jpg", "train"),
        ("annotations/train.json", "images/a.jpg", "train"),
        ("annotations/instances_default.json", "images/a.jpg", "train"),  # CVAT's
        ("annotations/instances_default.json", "images/default/a.jpg", "train"),
        ("train.json", "a.jpg", "train"),
        ("train.json", "train/a.jpg", "train"),
        ("validation.json", "valid/a.jpg", "val"),
        ("result.json", "images/a.jpg", "train"),  # Label Studio's: file names begin with images/
        ("mine.json", "mine/a.jpg", "train"),
        ("train/annotations.json", "train/a.jpg", "train"),
        ("val/labels.json", "val/images/a.jpg", "val"),
        ("data-test.json", "a.jpg", "test"),
        ("labels.json", "data/a.jpg", "train"),  # FiftyOne's
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_places_of_coco_files(tmp_path, photo, text, file, image, split, as_file):
    photo(tmp_path / image)
    text(tmp_path / file, coco(image="images/a.jpg" if file == "result.json" else "a.jpg"))
    found = recognize(tmp_path / file if as_file else tmp_path)
    assert (found.kind, found.class_names, list(found.splits)) == ("COCO", ["cat", "dog"], [split])
    (x,) = found.splits[split].dicts()
    assert x["file_name"] == str(tmp_path / image)
    assert x["image_id"] == 7
    assert [(obj["category_id"], obj["bbox"], obj["area"]) for obj in x["annotations"]] == [(0, BOX, 600)]


def test_splits_and_files_of_other_tasks(tmp_path, photo, text):
    for split in ("train", "val"):
        photo(tmp_path / f"{split}2017/{split}.jpg")
        text(tmp_path / f"annotations/instances_{split}2017.json", coco(image=f"{split}.jpg"))
        text(tmp_path / f"annotations/captions_{split}2017.json", coco())
        text(tmp_path / f"annotations/person_keypoints_{split}2017.json", coco())
    text(tmp_path / "results.json", "[]")
    found = recognize(tmp_path)
    files = {split: x.dicts()[0]["file_name"].removeprefix(str(tmp_path)) for split, x in found.splits.items()}
    assert files == {"train": "/train2017/train.jpg", "val": "/val2017/val.jpg"}


@pytest.mark.parametrize(("used", "names"), [(1, ["cat", "dog"]), (0, ["pets", "cat", "dog"])])
def test_roboflows_group_of_all_classes_is_dropped_where_no_object_has_it(tmp_path, photo, text, used, names):
    for folder, category in (("train", 1), ("valid", used)):
        photo(tmp_path / folder / "a.jpg")
        content = coco(["pets", "cat", "dog"], category, first_id=0, group="pets")
        text(tmp_path / folder / "_annotations.coco.json", content)
    found = recognize(tmp_path)
    assert (found.kind, list(found.splits), found.class_names) == ("COCO (Roboflow)", ["train", "val"], names)
    labels = [part.dicts()[0]["annotations"][0]["category_id"] for part in found.splits.values()]
    assert [names[label] for label in labels] == ["cat", ["pets", "cat"][used]]


def test_a_first_class_that_groups_no_other_is_kept(tmp_path, photo, text):
    photo(tmp_path / "a.jpg")
    text(tmp_path / "_annotations.coco.json", coco(["cat", "dog"], 1, first_id=0))
    assert recognize(tmp_path).class_names == ["cat", "dog"]


def test_different_categories_of_roboflows_files_are_an_error(tmp_path, photo, text):
    for folder, names in (("train", ["a", "b"]), ("valid", ["a", "c"])):
        photo(tmp_path / folder / "a.jpg")
        text(tmp_path / folder / "_annotations.coco.json", coco(names))
    with pytest.raises(InputError, match="have different categories"):
        recognize(tmp_path).splits["train"].dicts()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"holds no data set of a known layout: known are COCO"),
        (["a.jpg"], r"holds no data set of a known layout"),
        (["inner/data.yaml", "inner/images/a.jpg"], r"known layout, but .*/inner does"),
        (["../data.yaml", "a.jpg"], r"known layout, but .* does: known are"),
        (["../annotations/train.json", "a.jpg"], r"known layout, but .* does: known are"),
        (["train.json", "a.jpg", "data.yaml", "images/a.jpg"], r"holds COCO \(.*train.json\) and YOLO \(.*data.yaml\)"),
        (["a.xml", "a.jpg", "train.json"], r"holds COCO \(.*\) and Pascal VOC \(.*\): give the path"),
        (["one.json", "two.json", "a.jpg"], r"one.json tells no split, and is not the only one beside .*two.json"),
        (["train.json", "training.json", "a.jpg"], r"training.json and .*train.json are both of the split train"),
        (["one.yaml", "two.yaml"], r"has one.yaml and two.yaml, and both name classes"),
        (["train.json"], r"the image a.jpg of .*train.json is in none of the folders .*: put the images beside"),
    ],
)
def test_a_folder_that_is_not_understood(tmp_path, photo, text, files, message):
    folder = tmp_path / "mine"
    folder.mkdir()
    contents = {
        ".json": coco(),
        ".yaml": "train: images\nnames: [cat]\n",
        ".xml": xml_file([xml_object("a", (1, 1, 2, 2))]),
    }
    for name in files:
        path = folder / name
        photo(path) if path.suffix == ".jpg" else text(path, contents[path.suffix])
    with pytest.raises(InputError, match=message) as error:
        recognize(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "names no image"),
        ("a.xml", "", "give the folder of all XML files"),
        ("a.zip", "", "unpack it"),
        ("a.txt", "", "give a data.yaml"),
        ("a.mp4", "", "give the folder of a data set"),
    ],
)
def test_a_file_that_is_not_understood(tmp_path, text, name, content, message):
    with pytest.raises(InputError, match=message):
        recognize(text(tmp_path / name, content))


def test_a_wrong_path_says_what_is_there(tmp_path, text):
    text(tmp_path / "pets/data.yaml", "")
    with pytest.raises(InputError, match=rf"does not exist; {tmp_path} has pets: give the folder"):
        recognize(tmp_path / "pests/train")


def test_a_damaged_coco_file_is_found_when_it_is_read(tmp_path, photo, text):
    photo(tmp_path / "a.jpg")
    text(tmp_path / "train.json", coco(used=9))
    found = recognize(tmp_path)
    with pytest.raises(InputError, match="category_id 9, which is no id of the categories"):
        found.splits["train"].dicts()
