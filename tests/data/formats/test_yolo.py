"""YOLO's layouts, and boxes computed by hand: images of 64 x 48 pixels, x 64 across and x 48 down."""

import logging
import re
import sys

import pytest
from detectron2.structures import BoxMode

from detr.data.formats import recognize
from detr.errors import InputError

LINE = "1 0.5 0.25 0.25 0.5"  # center (32, 12), 16 x 24 pixels
BOX = [24, 0, 40, 24]


@pytest.fixture
def yolo(tmp_path, photo, text):
    """yolo(lines, yaml=...) is the path of a data.yaml with one image in images/train, and these lines as labels."""

    def make(lines=LINE, yaml="train: images/train\nnames: [cat, dog]\n", **options):
        photo(tmp_path / "images/train/a.jpg", **options)
        text(tmp_path / "labels/train/a.txt", lines)
        return text(tmp_path / "data.yaml", yaml)

    return make


def objects(path, split="train"):
    return [obj for x in recognize(path).splits[split].dicts() for obj in x["annotations"]]


def test_a_box(yolo, tmp_path):
    found = recognize(yolo().parent)
    assert (found.kind, found.class_names, list(found.splits)) == ("YOLO", ["cat", "dog"], ["train"])
    (image,) = found.splits["train"].dicts()
    (obj,) = image.pop("annotations")
    assert image == {"file_name": str(tmp_path / "images/train/a.jpg"), "height": 48, "width": 64, "image_id": 0}
    assert obj == {"category_id": 1, "bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}


def test_a_polygon_stays_as_it_is_written_and_its_box_is_around_it(yolo):
    (obj,) = objects(yolo("0 0.25 0.25 0.75 0.25 0.5 1.0"))
    assert obj["segmentation"] == [[16, 12, 48, 12, 32, 48]]
    assert obj["bbox"] == [16, 12, 48, 48]


@pytest.mark.parametrize("line", [LINE + " 0.9", "1.0 0.5 2.5e-1 0.25 0.5", f"\ufeff{LINE}\r\n\n"])
def test_other_ways_to_write_a_box(yolo, line):
    (obj,) = objects(yolo(line))
    assert (obj["category_id"], obj["bbox"], "segmentation" in obj) == (1, BOX, False)


def test_a_confidence_after_a_polygon_is_no_point_of_it(yolo):
    (obj,) = objects(yolo("0 0.25 0.25 0.75 0.25 0.5 1.0 0.9"))
    assert obj["segmentation"] == [[16, 12, 48, 12, 32, 48]]


def test_keypoints_behind_a_box_are_no_polygon(yolo):
    (obj,) = objects(yolo(LINE + " 0.5 0.5 2 0.1 0.1 0", "train: images/train\nnames: [a, b]\nkpt_shape: [2, 3]\n"))
    assert obj["bbox"] == BOX
    assert "segmentation" not in obj


def test_boxes_are_of_the_upright_image(yolo):
    path = yolo(orientation=6)  # 48 x 64 when it is turned
    (image,) = recognize(path).splits["train"].dicts()
    assert (image["height"], image["width"]) == (64, 48)
    assert image["annotations"][0]["bbox"] == pytest.approx([18, 0, 30, 32], abs=1e-4)


@pytest.mark.parametrize(
    ("images", "yaml"),
    [
        ("images/train", "path: .\ntrain: images/train\n"),
        ("images/train", "path: ../datasets/mine  # where Ultralytics would have it\ntrain: images/train\n"),
        ("train/images", "train: ../train/images\n"),  # Roboflow's, which lies beside data.yaml
        ("train/images", "train: [train/images]\n"),
        ("photos", "train: photos\n"),  # labels beside the images
        ("images/train/day 1", "train: images/train\n"),
    ],
)
def test_layouts(tmp_path, photo, text, images, yaml):
    image = photo(tmp_path / images / "a.JPG")
    text(tmp_path / re.sub(r"\bimages\b", "labels", images) / "a.txt", LINE)
    text(tmp_path / "data.yaml", f"{yaml}names:\n  0: cat\n  1: dog\n")
    (x,) = recognize(tmp_path).splits["train"].dicts()
    assert x["file_name"] == str(image)
    assert x["annotations"][0]["bbox"] == BOX


def test_classes_txt_beside_images_and_labels(tmp_path, photo, text):
    text(tmp_path / "classes.txt", "cat\ndog\n")
    photo(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", LINE)
    found = recognize(tmp_path)
    assert (found.kind, found.class_names, list(found.splits)) == ("YOLO", ["cat", "dog"], ["train"])
    assert objects(tmp_path)[0]["bbox"] == BOX
    for split in ("train", "valid"):
        photo(tmp_path / f"images/{split}/b.jpg")
    assert list(recognize(tmp_path).splits) == ["train", "val"]


def test_boxes_over_the_border_are_kept_for_the_checks_to_count(yolo):
    assert objects(yolo("0 0 0.5 0.5 0.5\n0 1 1 1 1\n0 0.5 0.5 0 0.1"))[0]["bbox"] == [-16, 12, 16, 36]


def test_caches_of_other_programs_are_no_images(yolo, photo, tmp_path):
    photo(tmp_path / "images/train/.thumbnails/a.jpg")
    photo(tmp_path / "images/train/._a.jpg")
    assert len(objects(yolo())) == 1


def test_the_last_images_of_a_path_becomes_labels(tmp_path, photo, text):
    photo(tmp_path / "images/pets/images/a.jpg")
    text(tmp_path / "images/pets/labels/a.txt", LINE)
    text(tmp_path / "data.yaml", "train: images/pets/images\nnames: [cat, dog]\n")
    assert objects(tmp_path)[0]["bbox"] == BOX


def test_a_list_of_images_is_relative_to_itself(yolo, tmp_path, text, caplog):
    yolo(yaml="train: train.txt\nnames: [cat, dog]\n")
    text(tmp_path / "train.txt", "./images/train/a.jpg\n")
    text(tmp_path / "labels/train/b.txt", LINE)  # of an image that another list may have
    assert objects(tmp_path)[0]["bbox"] == BOX
    assert "left out" not in caplog.text
    text(tmp_path / "train.txt", "images/train/a.jpg\nimages/train/b.jpg\n")
    with pytest.raises(InputError, match=r"train.txt, line 2: there is no image .*b.jpg"):
        objects(tmp_path)


def test_roboflows_export_is_recognized_by_its_note(yolo, photo, text, tmp_path):
    photo(tmp_path / "valid/images/b.jpg")
    text(tmp_path / "valid/labels/b.txt", "0 0.5 0.5 1 1")
    yolo(yaml="train: images/train\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'dog']\n"
         "roboflow:\n  project: pets\n")  # fmt: skip
    found = recognize(tmp_path)
    assert (found.kind, list(found.splits)) == ("YOLO (Roboflow)", ["train", "val"])
    assert objects(tmp_path, "val")[0]["bbox"] == [0, 0, 64, 48]


def test_a_test_set_that_is_not_there_is_said_and_left_out(yolo, caplog):
    path = yolo(yaml="train: images/train\ntest: nowhere\nnames: [cat, dog]\n")
    assert list(recognize(path).splits) == ["train"]
    assert "test: nowhere, but there is no" in caplog.text


def test_what_is_harmless_is_counted(yolo, photo, text, tmp_path, caplog):
    path = yolo()
    photo(tmp_path / "images/train/b.jpg")
    photo(tmp_path / "images/train/c.jpg")
    text(tmp_path / "labels/train/c.txt", "")
    text(tmp_path / "labels/train/d.txt", LINE)
    with caplog.at_level(logging.WARNING):
        dicts = recognize(path).splits["train"].dicts()
    assert [len(x["annotations"]) for x in dicts] == [1, 0, 0]
    assert "1 of 3 images have no label file" in caplog.text
    assert (
        f"1 label files are left out, because there is no image of their name; the first is {tmp_path}" in caplog.text
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.1 0.1", "has the class 2, but data.yaml names 2 classes"),
        ("-1 0.5 0.5 0.1 0.1", "has the class -1"),
        ("dog 0.5 0.5 0.1 0.1", "Invalid class id 'dog'"),
        ("1 0.5 0.5 0.1", "expected at least 5 tokens"),
        ("1,0.5,0.5,0.1,0.1", "expected at least 5 tokens"),
        ("1 0.5 0.5 x 0.1", "could not convert string to float: 'x'"),
        ("1 0.5 nan 0.1 0.1", "expected a finite center"),
        ("1 0.5 0.5 -0.1 0.1", "Invalid box extent"),
        ("1 32 24 16 12", "must be fractions of the image's width and height"),
        ("1 0.1 0.1 0.5 0.1 0.5 nan", "only finite numeric values"),
        ("1 8 8 40 8 40 30", "must be fractions"),
        ("1e400 0.5 0.5 0.1 0.1", "line 2"),
    ],
)
def test_a_bad_line_is_named(yolo, line, message):
    path = yolo(f"{LINE}\n{line}\n")
    with pytest.raises(InputError, match=re.escape(message)) as error:
        objects(path)
    assert "labels/train/a.txt, line 2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\n", "has the names None"),
        ("train: images/train\nnames: {0: cat, 2: dog}\n", "number them 0, 1, 2"),
        ("train: images/train\nnames: [cat]\nnc: 2\n", "has nc 2, but 1 names"),
        ("train: images/nowhere\nnames: [cat, dog]\n", "but there is no .*/images/nowhere: correct it"),
        ("names: [cat, dog]\n", "names no images"),
        ("names: [cat, dog\n", "is no YAML"),
        ("- cat\n", "holds a list"),
        ("train: 3\nnames: [cat]\n", "it must be a folder of images"),
        ("train: images/train\nnames: [cat, dog]\nkpt_shape: 17\n", "kpt_shape"),
    ],
)
def test_a_bad_data_yaml_is_named(yolo, yaml, message):
    path = yolo(yaml=yaml)
    with pytest.raises(InputError, match=message) as error:
        recognize(path)
    assert str(path) in str(error.value)


def test_labels_that_are_nowhere_are_an_error(yolo, tmp_path):
    path = yolo()
    (tmp_path / "labels/train/a.txt").unlink()
    with pytest.raises(InputError, match=r"none of the 1 images .* belong into .*/labels/train/a\.txt"):
        objects(path)


def test_an_image_that_cannot_be_opened_is_named(yolo, tmp_path):
    path = yolo()
    (tmp_path / "images/train/a.jpg").write_text("no image")
    with pytest.raises(InputError, match="cannot read the image"):
        objects(path)


def test_the_missing_package_is_named(yolo, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "supervision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "supervision", None)
    found = recognize(yolo())
    message = "the package supervision, which is not installed: pip install -e '.[data]'"
    with pytest.raises(InputError, match=re.escape(message)) as error:
        found.splits["train"].dicts()
    assert "line 1" not in str(error.value)
