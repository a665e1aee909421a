"""COCO's photos as YOLO's and Pascal VOC's files: what is read from these is what COCO's file says."""

import pytest

from detr.data.boxes import boxes_to_xyxy
from detr.data.formats import recognize, split_off, write_coco
from tests.conftest import ROOT
from tests.data.formats.making import write_voc, write_yolo

COCO = ROOT.parent / "shared" / "datasets" / "tiny" / "coco"


@pytest.fixture(scope="module")
def coco():
    if not COCO.is_dir():
        pytest.skip(f"no real data in {COCO}")
    return recognize(COCO)


@pytest.fixture(scope="module")
def splits(coco):
    return {split: part.dicts()[:20] for split, part in coco.splits.items()}


def stem(x):
    return x["file_name"].rsplit("/", 1)[-1].split(".")[0]


@pytest.mark.parametrize(("write", "kind"), [(write_yolo, "YOLO"), (write_voc, "Pascal VOC")])
def test_the_objects_are_those_of_the_coco_file(coco, splits, tmp_path, write, kind):
    write(tmp_path / "copy", splits, coco.class_names)
    found = recognize(tmp_path / "copy")
    assert (found.kind, list(found.splits)) == (kind, ["train", "val"])
    for split, wanted in splits.items():
        dicts = {stem(x): x for x in found.splits[split].dicts()}
        assert dicts.keys() == {stem(x) for x in wanted}
        for theirs in wanted:
            ours = dicts[stem(theirs)]
            assert (ours["height"], ours["width"]) == (theirs["height"], theirs["width"])
            names = [found.class_names[obj["category_id"]] for obj in ours["annotations"]]
            assert names == [coco.class_names[obj["category_id"]] for obj in theirs["annotations"]]
            # COCO rounds its boxes to hundredths; the polygons, from which YOLO's boxes come, reach as far.
            a, b = boxes_to_xyxy(ours["annotations"]), boxes_to_xyxy(theirs["annotations"])
            assert abs(a - b).max(initial=0) < 0.02
            if kind == "Pascal VOC":
                assert [x["iscrowd"] for x in ours["annotations"]] == [x["iscrowd"] for x in theirs["annotations"]]
            for x, y in zip(ours["annotations"], theirs["annotations"], strict=True):
                if "segmentation" in x:
                    assert x["segmentation"][0] == pytest.approx(y["segmentation"][0], abs=1e-3)


def test_a_written_coco_file_is_read_as_the_same_data_set(coco, splits, tmp_path):
    write_coco(splits["train"], coco.class_names, tmp_path / "train.json")
    found = recognize(tmp_path / "train.json")
    assert found.class_names == coco.class_names
    assert found.splits["train"].dicts() == splits["train"]


def test_every_class_of_two_photos_is_in_both_parts(coco):
    dicts = coco.splits["train"].dicts()
    train, val = split_off(dicts, fraction=0.2)
    images = [{obj["category_id"] for obj in x["annotations"] if not obj["iscrowd"]} for x in dicts]
    twice = {label for label in range(80) if sum(label in labels for labels in images) > 1}
    for part in (train, val):
        assert twice <= {obj["category_id"] for x in part for obj in x["annotations"] if not obj["iscrowd"]}
    assert len(twice) > 40
    assert len(val) == pytest.approx(0.2 * len(dicts), rel=0.25)
    assert sorted(stem(x) for x in [*train, *val]) == sorted(map(stem, dicts))
