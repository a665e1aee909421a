"""Data sets in Detectron2's catalogs."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from pycocotools import mask as mask_util

import detr
from detr.data import register_any
from detr.data.formats import recognize
from detr.data.loading import load_dataset
from detr.data.masks import rasterize
from detr.data.metadata import class_names
from detr.errors import InputError
from tests.data.formats.making import write_voc, write_yolo

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def dicts(photo, tmp_path):
    """Two images of 64 x 48 pixels with two objects each."""
    return [
        {
            "file_name": str(photo(tmp_path / "photos" / f"{i}.jpg")),
            "height": 48,
            "width": 64,
            "annotations": [
                {"bbox": [4 + i, 4, 24, 20], "bbox_mode": 0, "category_id": 0, "iscrowd": 0},
                {"bbox": [30, 10, 54, 40 - i], "bbox_mode": 0, "category_id": 2, "iscrowd": 0},
            ],
        }
        for i in range(2)
    ]


@pytest.fixture
def yolo(dicts, tmp_path):
    return write_yolo(tmp_path / "yolo", {"train": dicts[:1], "val": dicts[1:]}, NAMES)


def test_it_is_exported():
    assert detr.register_any is register_any


def test_yolo(yolo, registered):
    register_any("mine", yolo, "val")
    registered.append("mine")
    assert MetadataCatalog.get("mine").thing_classes == NAMES
    (x,) = load_dataset("mine")
    assert [obj["bbox"] for obj in x["annotations"]] == [
        pytest.approx([5, 4, 24, 20], abs=1e-4),
        pytest.approx([30, 10, 54, 39], abs=1e-4),
    ]


def test_voc_gets_its_classes_when_it_is_loaded(dicts, tmp_path, registered):
    register_any("mine", write_voc(tmp_path / "voc", {"train": dicts}, NAMES))
    registered.append("mine")
    assert class_names("mine") is None
    assert len(load_dataset("mine")) == 2
    assert class_names("mine") == ["cat", "owl"]


def test_a_coco_file_is_registered_as_detectron2_registers_it(tmp_path, dicts, registered):
    detr.data.formats.write_coco(dicts, NAMES, tmp_path / "photos/train.json")
    register_coco_instances("theirs", {}, str(tmp_path / "photos/train.json"), str(tmp_path / "photos"))
    register_any("ours", tmp_path / "photos")
    registered += ["theirs", "ours"]
    assert load_dataset("ours") == load_dataset("theirs")
    ours, theirs = (MetadataCatalog.get(name).as_dict() for name in ("ours", "theirs"))
    assert {key: value for key, value in ours.items() if key not in ("name", "source")} == {
        key: value for key, value in theirs.items() if key != "name"
    }


def test_files_are_read_when_the_data_set_is_loaded(yolo, registered):
    register_any("mine", yolo, "train")
    registered.append("mine")
    label = next(yolo.parent.glob("labels/train/*.txt"))
    label.write_text("7 0.5 0.5 0.1 0.1")
    with pytest.raises(InputError, match=r"line 1 has the class 7"):
        load_dataset("mine")


def test_a_second_call_changes_nothing_and_another_path_is_an_error(yolo, registered):
    register_any("mine", yolo, "train")
    registered.append("mine")
    load = DatasetCatalog["mine"]
    register_any("mine", str(yolo), "train")
    assert DatasetCatalog["mine"] is load
    with pytest.raises(InputError, match=r"mine is already registered for .*yolo/data.yaml \(train\): choose another"):
        register_any("mine", yolo, "val")
    with pytest.raises(InputError, match="coco_2017_val is already registered: choose"):
        register_any("coco_2017_val", yolo, "val")


def test_a_wrong_path_and_a_wrong_split_are_errors_at_once(yolo):
    with pytest.raises(InputError, match="does not exist"):
        register_any("mine", yolo / "nowhere")
    with pytest.raises(InputError, match=r"has the splits train, val: say which, as in split='train'"):
        register_any("mine", yolo)
    with pytest.raises(InputError, match=r"has no split 'valid': it has train, val"):
        register_any("mine", yolo, "valid")
    assert "mine" not in DatasetCatalog


def test_roboflows_coco_file_is_evaluated_without_its_group(tmp_path, dicts, registered):
    path = tmp_path / "photos/_annotations.coco.json"
    detr.data.formats.write_coco(dicts, ["pets", *NAMES], path)
    content = json.loads(path.read_text())
    for x in content["categories"]:
        x.update(id=x["id"] - 1, supercategory="pets" if x["id"] > 1 else "none")
    path.write_text(json.dumps(content))
    assert recognize(path).class_names == NAMES
    register_any("mine", path)
    registered.append("mine")
    load_dataset("mine")
    assert class_names("mine") == NAMES


def test_written_dicts_are_read_as_they_were(tmp_path, dicts, registered):
    detr.data.formats.write_coco(dicts, NAMES, tmp_path / "elsewhere/val.json")
    register_any("mine", tmp_path / "elsewhere/val.json")
    registered.append("mine")
    read = load_dataset("mine")
    assert [x["file_name"] for x in read] == [x["file_name"] for x in dicts]
    for x, y in zip(read, dicts, strict=True):
        boxes = [[a, b, a + w, b + h] for a, b, w, h in (obj["bbox"] for obj in x["annotations"])]
        assert boxes == [obj["bbox"] for obj in y["annotations"]]
        assert [obj["category_id"] for obj in x["annotations"]] == [0, 2]


def test_file_names_below_the_json_are_relative(tmp_path, dicts):
    detr.data.formats.write_coco(dicts, NAMES, tmp_path / "val.json")
    content = json.loads((tmp_path / "val.json").read_text())
    assert [x["file_name"] for x in content["images"]] == ["photos/0.jpg", "photos/1.jpg"]
    assert [x["area"] for x in content["annotations"]] == [20 * 16, 24 * 30, 19 * 16, 24 * 29]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"category_id": 3}, "outside"), ({"bbox": [1, 2, 3]}, "4 finite numbers")],
)
def test_what_cannot_be_written(tmp_path, dicts, change, message):
    dicts[0]["annotations"][0].update(change)
    with pytest.raises(InputError, match=message):
        detr.data.formats.write_coco(dicts, NAMES, tmp_path / "val.json")
    assert not list(tmp_path.glob("*.json*"))


@pytest.mark.parametrize(
    ("ids", "written"), [((7, 3), [7, 3]), (("a", "b"), ["a", "b"]), ((7, 7), [0, 1]), ((None, 3), [0, 1])]
)
def test_image_ids_are_kept_where_all_are_different(tmp_path, dicts, ids, written):
    for x, value in zip(dicts, ids, strict=True):
        x["image_id"] = value
    detr.data.formats.write_coco(dicts, NAMES, tmp_path / "val.json")
    content = json.loads((tmp_path / "val.json").read_text())
    assert [x["id"] for x in content["images"]] == written
    assert [x["image_id"] for x in content["annotations"]] == [value for value in written for _ in range(2)]


def test_masks_of_every_kind_are_written(tmp_path, dicts):
    mask = np.zeros((48, 64), dtype=np.uint8)
    mask[4:20, 4:24] = 1
    polygon = [4, 4, 24, 4, 24, 20, 4, 20]
    rle = mask_util.encode(np.asfortranarray(mask))
    uncompressed = {"size": [48, 64], "counts": [4 * 48 + 4, *[16, 32] * 19, 16, 28 + 40 * 48]}
    given = [[polygon], [np.array(polygon)], rle, mask, uncompressed, [[4, 4, 9, 9, 1e9, 9]]]
    box = dicts[0]["annotations"][0]
    dicts[0]["annotations"] = [{**box, "segmentation": segmentation} for segmentation in given]
    detr.data.formats.write_coco(dicts[:1], NAMES, tmp_path / "val.json")
    (x,) = recognize(tmp_path / "val.json").splits["val"].dicts()
    read = [obj.get("segmentation") for obj in x["annotations"]]
    assert (read[0], read[4], read[5]) == ([polygon], uncompressed, None)
    for segmentation in read[:5]:
        assert (rasterize(segmentation, (48, 64), "") == mask).all()
    assert [obj["area"] for obj in x["annotations"]] == [320] * 6
