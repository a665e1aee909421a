"""The embedded data set: what is in its files, how they are generated, and how Detectron2 sees it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO

from detr.data.shapes import SHAPES, ensure_shapes, generation, register_shapes
from detr.errors import InputError
from tests.source_tree import ROOT

SMALL = {"train_images": 60, "val_images": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp("datasets"), **SMALL)


@pytest.fixture(scope="module", params=["train", "val"])
def images(request, folder):
    """(annotations of things, their masks, panoptic segments, segment ids (H, W)) of each image of a split."""
    annotations = folder / "annotations"
    coco = COCO(annotations / f"instances_{request.param}.json")
    result = []
    for entry in json.loads((annotations / f"panoptic_{request.param}.json").read_text())["annotations"]:
        rgb = np.asarray(Image.open(folder / f"panoptic_{request.param}" / entry["file_name"])).astype(np.int64)
        things = coco.imgToAnns[entry["image_id"]]
        masks = [coco.annToMask(thing).astype(bool) for thing in things]
        result.append((things, masks, entry["segments_info"], rgb @ [1, 256, 65536]))
    return result


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# --- the files ---


def test_files_are_always_the_same(folder, tmp_path):
    files = digests(folder)
    assert digests(ensure_shapes(tmp_path, **SMALL)) == files
    assert len({digest for name, digest in files.items() if name.endswith(".jpg")}) == 80  # no two are alike


def test_an_image_does_not_depend_on_how_many_there_are(folder, tmp_path):
    fewer = digests(ensure_shapes(tmp_path, train_images=3, val_images=1))
    images = {name: digest for name, digest in fewer.items() if name.endswith((".jpg", ".png"))}
    assert len(images) == 8
    assert images.items() <= digests(folder).items()


def test_boxes_and_areas_are_those_of_the_masks(images):
    for things, masks, segments, ids in images:
        assert {segment["id"] for segment in segments} == set(np.unique(ids).tolist()) - {0}
        assert 0 < (ids == 0).mean() < 0.06  # only thin edges between stuff are void
        both = [*masks, *(ids == segment["id"] for segment in segments)]
        for annotation, mask in zip([*things, *segments], both, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns[0], rows[0])
            assert (x + width - 1, y + height - 1) == (columns[-1], rows[-1])
            assert annotation["area"] == mask.sum()


def test_instances_are_the_panoptic_things_pixel_for_pixel(images):
    for things, masks, segments, ids in images:
        assert [(x["category_id"], x["iscrowd"], mask.tobytes()) for x, mask in zip(things, masks, strict=True)] == [
            (x["category_id"], x["iscrowd"], (ids == x["id"]).tobytes()) for x in segments if x["category_id"] < 9
        ]


def test_objects_have_the_stated_number_and_size_and_some_overlap(images):
    numbers, overlaps = set(), 0
    for things, _, _, _ in images:
        boxes = [x["bbox"] for x in things if not x["iscrowd"]]
        numbers.add(len(boxes))
        assert all(14 <= side <= 44 for box in boxes for side in box[2:])
        overlaps += np.triu(mask_util.iou(boxes, boxes, [0] * len(boxes)) > 0.05, k=1).sum() if boxes else 0
    assert {1, 6} <= numbers <= set(range(7))
    assert overlaps >= 5


def test_every_kind_of_annotation_is_there(folder):
    coco = json.loads((folder / "annotations" / "instances_train.json").read_text())
    crowds = [x["segmentation"] for x in coco["annotations"] if x["iscrowd"]]
    objects = [x for x in coco["annotations"] if not x["iscrowd"]]
    polygons = [x for x in objects if isinstance(x["segmentation"], list)]
    assert [type(x["counts"]) for x in crowds] == [list, list]  # images 17 and 50 of 60; uncompressed, as in COCO
    assert len(objects) / 2 < len(polygons) < 0.9 * len(objects)
    assert not [x for x in polygons if x["image_id"] % 5 == 1]  # every fifth image has RLEs only
    assert {x["category_id"] for x in objects} == {1, 2, 4, 7}
    assert {x["id"] for x in coco["images"]} - {x["image_id"] for x in coco["annotations"]} == {26}
    assert min(x["id"] for x in coco["annotations"]) > 0  # pycocotools takes 0 for "no match"


# --- generating them ---


@pytest.mark.slow
def test_processes_that_start_together_and_one_that_is_killed(tmp_path, caplog):
    """One is killed while it writes; of the two that wait for it, one generates the data set for both."""
    code = """
import logging, pathlib, sys
from detr.data.shapes import ensure_shapes
logging.basicConfig(level=logging.INFO)
print("ready", flush=True)
ensure_shapes(pathlib.Path(sys.argv[1]), train_images=int(sys.stdin.readline()), val_images=2)
"""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    victim, other = both = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(2)]
    states = []

    def kill_while_others_wait():
        states.extend([victim.poll(), other.poll(), {path.name for path in tmp_path.iterdir()}])
        victim.kill()

    killer = threading.Timer(0.5, kill_while_others_wait)
    try:
        for process in both:
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        print(100_000, file=victim.stdin, flush=True)
        assert any("Generating" in line for line in victim.stderr)
        print(10, file=other.stdin, flush=True)
        killer.start()
        with caplog.at_level("INFO"):
            ensure_shapes(tmp_path, train_images=10, val_images=2)  # this process is the third
        _, log = other.communicate(timeout=30)
    finally:
        killer.cancel()
        for process in both:
            process.kill()
            process.communicate()
    assert states == [None, None, {"shapes.lock", "shapes.partial"}]
    assert (victim.returncode, other.returncode) == (-signal.SIGKILL, 0), log
    assert ("Generating" in log) + ("Generating" in caplog.text) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"shapes", "shapes.lock"}
    assert len(list((tmp_path / "shapes" / "train").iterdir())) == 10


def test_an_existing_data_set_is_kept(tmp_path, monkeypatch):
    before = digests(ensure_shapes(tmp_path, train_images=2, val_images=1))
    monkeypatch.setattr(generation, "write_shapes", None)
    assert ensure_shapes(tmp_path) == tmp_path / "shapes"
    assert digests(tmp_path / "shapes") == before


@pytest.mark.parametrize("info", ['{"version": 0, "seed": 0}', "{}", "[1]", "{ not JSON", None])
def test_another_folder_is_named_and_kept(tmp_path, info):
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / ("info.json" if info else "mine.txt")).write_text(info or "precious")
    before = digests(tmp_path)
    with pytest.raises(InputError, match=r"/shapes is not version 1 of the shapes data set: move it away"):
        ensure_shapes(tmp_path)
    assert digests(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")  # a file, because permissions do not stop root
    with pytest.raises(InputError, match=r"file/datasets/shapes .*set DETECTRON2_DATASETS"):
        ensure_shapes(tmp_path / "file" / "datasets")


# --- in Detectron2 ---


@pytest.fixture
def register(tmp_path, monkeypatch):
    """register(value of DETECTRON2_DATASETS) registers the data sets anew, until the end of the test."""

    def remove():
        return {name: (DatasetCatalog.pop(name), MetadataCatalog.pop(name)) for name in SHAPES}

    def register(value=str(tmp_path)):
        monkeypatch.setenv("DETECTRON2_DATASETS", value)
        register_shapes()
        return tmp_path / "shapes"

    before = remove()
    yield register
    remove()
    for name, (loader, metadata) in before.items():
        DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


@pytest.mark.parametrize(
    ("value", "folder"),
    [("/data", "/data"), ("~/datasets", "/home/me/datasets"), ("", "/home/me/.cache/detectron2-detr")],
)
def test_the_folder_is_the_environments_and_stays(register, monkeypatch, value, folder):
    monkeypatch.setenv("HOME", "/home/me")
    register(value)
    register("/elsewhere")  # a second call changes nothing
    assert MetadataCatalog.get("shapes_val").json_file == f"{folder}/shapes/annotations/instances_val.json"


def test_loading_generates_standard_dicts(register, monkeypatch):
    register()
    write = generation.write_shapes
    monkeypatch.setattr(generation, "write_shapes", lambda folder, counts: write(folder, {"train": 30, "val": 3}))
    dicts, panoptic = DatasetCatalog.get("shapes_train"), DatasetCatalog.get("shapes_train_panoptic")
    assert len(dicts) == 30
    for x, other in zip(dicts, panoptic, strict=True):
        assert (x["file_name"], x["image_id"]) == (other["file_name"], other["image_id"])
        assert os.path.isfile(x["file_name"])
        assert os.path.isfile(other["pan_seg_file_name"])
        assert {annotation["bbox_mode"] for annotation in x["annotations"]} <= {BoxMode.XYWH_ABS}
        # The same contiguous ids, things first.
        things = [s["category_id"] for s in other["segments_info"] if s["isthing"]]
        assert [annotation["category_id"] for annotation in x["annotations"]] == things
        assert all((s["category_id"] < 4) == s["isthing"] for s in other["segments_info"])
    assert len(DatasetCatalog.get("shapes_val")) == len(DatasetCatalog.get("shapes_val_panoptic")) == 3


def test_metadata_agree_with_the_files(register):
    folder = register()
    metadata = MetadataCatalog.get("shapes_val_panoptic")
    assert metadata.thing_classes == ["disc", "square", "triangle", "star"]
    assert (metadata.evaluator_type, metadata.ignore_label, metadata.label_divisor) == ("coco_panoptic_seg", 255, 1000)
    assert MetadataCatalog.get("shapes_val").evaluator_type == "coco"

    assert ensure_shapes(train_images=2, val_images=2) == folder
    assert os.path.isfile(metadata.json_file)
    assert len(os.listdir(metadata.image_root)) == len(os.listdir(metadata.panoptic_root)) == 2
    contiguous = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    for i, category in enumerate(json.loads(Path(metadata.panoptic_json).read_text())["categories"]):
        assert contiguous[category["id"]] == i
        assert (metadata.stuff_classes[i], metadata.stuff_colors[i]) == (category["name"], category["color"])


@pytest.mark.slow
def test_import_touches_neither_the_data_set_nor_what_generates_it(folder):
    code = """
import os, sys
folder, stat, touched = os.environ["DETECTRON2_DATASETS"], os.stat, []
sys.addaudithook(lambda event, args: touched.append((event, args)) if folder in str(args) else None)
os.stat = lambda path, *args, **kwargs: sys.audit("stat", path) or stat(path, *args, **kwargs)
import detr
print([event for event, args in touched], "detr.data.shapes.generation" in sys.modules)
detr.data.shapes.ensure_shapes()
print(touched[0][0], "detr.data.shapes.generation" in sys.modules)
"""
    env = {**os.environ, "DETECTRON2_DATASETS": str(folder.parent)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.stdout.splitlines() == ["[] False", "open False"], result.stderr
