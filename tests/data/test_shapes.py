"""The embedded data set: what is in its files, how it gets to disk, and how Detectron2 sees it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools.coco import COCO

from detr.data import shapes
from detr.data.shapes.drawing import draw_scene
from detr.errors import InputError
from tests.source_tree import ROOT

# pycocotools' decode, on numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")

SMALL = {"train_images": 60, "val_images": 20}
NAMES = ("shapes_train", "shapes_val", "shapes_train_panoptic", "shapes_val_panoptic")


@pytest.fixture(autouse=True)
def nothing_is_written_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)


@pytest.fixture
def unregistered():
    """Without the data sets that `import detr` may have registered, which come back afterwards."""

    def take_out():
        found = {}
        for name in NAMES:
            if name in DatasetCatalog:
                found[name] = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
        return found

    before = take_out()
    yield
    take_out()
    for name, (loader, metadata) in before.items():
        DatasetCatalog[name], MetadataCatalog[name] = loader, metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shapes.ensure_shapes(tmp_path_factory.mktemp("datasets"), **SMALL)


@pytest.fixture(scope="module", params=["train", "val"])
def split(request, folder):
    """(instances JSON, panoptic JSON, {image id: segment ids (H, W)}) of one split."""
    read = {
        kind: json.loads((folder / "annotations" / f"{kind}_{request.param}.json").read_text())
        for kind in ("instances", "panoptic")
    }
    pngs = {}
    for entry in read["panoptic"]["annotations"]:
        with Image.open(folder / f"panoptic_{request.param}" / entry["file_name"]) as png:
            rgb = np.asarray(png).astype(np.int64)
        pngs[entry["image_id"]] = rgb @ [1, 256, 65536]
    return read["instances"], read["panoptic"], pngs


def of_image(annotations, image_id):
    return [annotation for annotation in annotations if annotation["image_id"] == image_id]


def mask_of(annotation):
    """(H, W), by pycocotools alone."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        rle = mask_util.merge(mask_util.frPyObjects(segmentation, 128, 128))
    elif isinstance(segmentation["counts"], list):
        rle = mask_util.frPyObjects(segmentation, 128, 128)
    else:
        rle = segmentation
    return mask_util.decode(rle).astype(bool)


def bounds(mask):
    """[x, y, width, height], by coordinates rather than by rows and columns."""
    y, x = np.nonzero(mask)
    return [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# What is in the files


def test_same_seed_same_bytes(folder, tmp_path):
    again = shapes.ensure_shapes(tmp_path, **SMALL)
    assert digests(again) == digests(folder)


def test_another_seed_gives_other_images(folder, tmp_path):
    other = shapes.ensure_shapes(tmp_path, seed=1, train_images=3, val_images=1)
    name = "train/000000000001.jpg"
    assert digests(other)[name] != digests(folder)[name]


def test_an_image_does_not_depend_on_how_many_there_are(folder, tmp_path):
    fewer = digests(shapes.ensure_shapes(tmp_path, train_images=3, val_images=1))
    images = {name: digest for name, digest in fewer.items() if name.endswith((".jpg", ".png"))}
    assert len(images) == 8
    assert images.items() <= digests(folder).items()


def test_no_two_images_are_alike(folder):
    jpegs = [digest for name, digest in digests(folder).items() if name.endswith(".jpg")]
    assert len(set(jpegs)) == len(jpegs) == 80


def test_images_are_jpegs_of_the_stated_size(folder):
    paths = [*folder.glob("train/*"), *folder.glob("val/*")]
    assert len(paths) == 80
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (128, 128))


def test_boxes_areas_and_masks_agree(split):
    instances, _, _ = split
    for annotation in instances["annotations"]:
        mask = mask_of(annotation)
        assert annotation["bbox"] == bounds(mask)
        assert annotation["area"] == mask.sum()


def test_objects_have_the_stated_number_and_size(split):
    instances, _, _ = split
    numbers = set()
    for image in instances["images"]:
        objects = [a for a in of_image(instances["annotations"], image["id"]) if not a["iscrowd"]]
        numbers.add(len(objects))
        for annotation in objects:
            assert min(annotation["bbox"][2:]) >= 14
            assert max(annotation["bbox"][2:]) <= 44
    assert numbers <= set(range(7))
    assert {1, 6} <= numbers


def test_every_kind_of_annotation_is_there(folder):
    instances = json.loads((folder / "annotations" / "instances_train.json").read_text())
    annotations = instances["annotations"]
    crowds = [a for a in annotations if a["iscrowd"]]
    objects = [a for a in annotations if not a["iscrowd"]]
    polygons = [a for a in objects if isinstance(a["segmentation"], list)]
    compressed = [a for a in objects if isinstance(a["segmentation"], dict)]
    assert len(crowds) == 2  # images 17 and 50 of 60
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)  # uncompressed, as in COCO
    assert len(polygons) > len(objects) / 2
    assert len(compressed) > len(objects) / 10
    # Every fifth image has RLEs alone: of objects that nothing hides, too.
    assert not [a for a in polygons if a["image_id"] % 5 == 1]
    assert {a["category_id"] for a in objects} == {1, 2, 4, 7}
    empty = [i["id"] for i in instances["images"] if not of_image(annotations, i["id"])]
    assert empty == [26]


def test_hidden_parts_belong_to_nobody(split):
    """Boxes overlap and masks never do, so that later objects hide earlier ones in the annotations too."""
    instances, _, _ = split
    overlapping_boxes = 0
    for image in instances["images"]:
        annotations = of_image(instances["annotations"], image["id"])
        masks = [mask_of(a) for a in annotations]
        assert np.sum(masks, axis=0).max(initial=0) <= 1
        boxes = [a["bbox"] for a in annotations]
        ious = mask_util.iou(boxes, boxes, [0] * len(boxes)) if boxes else np.zeros((0, 0))
        overlapping_boxes += np.triu(ious > 0.05, k=1).sum()
    assert overlapping_boxes >= 5


def test_at_least_three_fifths_of_an_object_stay_visible():
    """A disc of side s covers 0.78 s^2, and what is seen of it is at most s wide and high."""
    for seed in range(80):
        for segment in draw_scene(np.random.default_rng(seed)).segments:
            if segment.category_id == 1 and segment.outline is None and not segment.iscrowd:
                _, _, width, height = bounds(segment.mask)
                assert segment.mask.sum() >= 0.6 * 0.75 * max(width, height) ** 2


def test_panoptic_pngs_and_json_agree(split):
    _, panoptic, pngs = split
    for entry in panoptic["annotations"]:
        ids = pngs[entry["image_id"]]
        assert {s["id"] for s in entry["segments_info"]} == set(np.unique(ids).tolist()) - {0}
        for segment in entry["segments_info"]:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            assert segment["bbox"] == bounds(mask)


def test_instances_are_the_panoptic_things_pixel_for_pixel(split):
    instances, panoptic, pngs = split
    things = {c["id"] for c in panoptic["categories"] if c["isthing"]}
    for entry in panoptic["annotations"]:
        ids = pngs[entry["image_id"]]
        from_panoptic = {
            (s["category_id"], s["iscrowd"], (ids == s["id"]).tobytes())
            for s in entry["segments_info"]
            if s["category_id"] in things
        }
        from_instances = {
            (a["category_id"], a["iscrowd"], mask_of(a).tobytes())
            for a in of_image(instances["annotations"], entry["image_id"])
        }
        assert from_instances == from_panoptic


def test_stuff_fills_the_background_but_for_a_little_void(split):
    _, panoptic, pngs = split
    stuff = {c["id"] for c in panoptic["categories"] if not c["isthing"]}
    for entry in panoptic["annotations"]:
        classes = [s["category_id"] for s in entry["segments_info"] if s["category_id"] in stuff]
        assert len(classes) == len(set(classes)) >= 2
        assert 0 < (pngs[entry["image_id"]] == 0).mean() < 0.06


def test_categories_are_shared_and_have_gaps(split):
    instances, panoptic, _ = split
    names = {c["id"]: c["name"] for c in panoptic["categories"]}
    things = {c["id"]: c["name"] for c in instances["categories"]}
    assert things == {c["id"]: c["name"] for c in panoptic["categories"] if c["isthing"]}
    assert sorted(names) != list(range(1, len(names) + 1))
    assert all(len(c["color"]) == 3 for c in panoptic["categories"])


def test_pycocotools_reads_the_instances(folder):
    coco = COCO(folder / "annotations" / "instances_val.json")
    assert len(coco.getImgIds()) == 20
    assert min(coco.getAnnIds()) > 0  # pycocotools takes 0 for "no match"
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert coco.annToMask(annotation).sum() == annotation["area"]


# How it gets to disk


def test_processes_that_start_together_and_one_that_is_killed(tmp_path, caplog):
    """One is killed while it writes; the two that wait for it end with one whole data set between them."""
    command = [
        sys.executable,
        "-c",
        "import logging, sys, pathlib\n"
        "from detr.data.shapes import ensure_shapes\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "print('ready', flush=True)\n"
        "n = int(sys.stdin.readline())\n"
        "ensure_shapes(pathlib.Path(sys.argv[1]), train_images=n, val_images=2)\n",
        str(tmp_path),
    ]
    start = {"cwd": ROOT, "text": True, "env": {**os.environ, "PYTHONWARNINGS": "ignore"}}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    victim, other = both = [subprocess.Popen(command, **start, **pipes) for _ in range(2)]
    states = []

    def kill_while_others_wait():
        states.extend([victim.poll(), other.poll(), (tmp_path / "shapes").exists()])
        victim.kill()

    killer = threading.Timer(0.5, kill_while_others_wait)
    try:
        for process in both:
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
        victim.stdin.write("100000\n")
        victim.stdin.flush()
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("shapes.partial-*/shapes/train/*.jpg")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        other.stdin.write("10\n")
        other.stdin.flush()
        killer.start()
        with caplog.at_level("INFO"):
            shapes.ensure_shapes(tmp_path, train_images=10, val_images=2)  # this process is the third
        _, log = other.communicate(timeout=30)
    finally:
        killer.cancel()
        for process in both:
            process.kill()
            process.communicate()
    assert states == [None, None, False]  # until the kill all were at work, and nothing looked finished
    assert (victim.returncode, other.returncode) == (-signal.SIGKILL, 0), log
    assert ("Generating" in log) + ("Generating" in caplog.text) == 1
    assert len(list((tmp_path / "shapes" / "train").iterdir())) == 10
    assert json.loads((tmp_path / "shapes" / "info.json").read_text())["train_images"] == 10
    assert len(list(tmp_path.glob("shapes.partial-*"))) == 1  # the victim's alone


def test_an_old_leftover_is_removed_and_a_young_one_is_not(tmp_path):
    old, young = tmp_path / "shapes.partial-old", tmp_path / "shapes.partial-young"
    for leftover in (old, young):
        (leftover / "shapes").mkdir(parents=True)
    os.utime(old, (0, 0))
    folder = shapes.ensure_shapes(tmp_path, train_images=2, val_images=1)
    assert (folder / "info.json").exists()
    assert not old.exists()
    assert young.exists()


def test_an_interrupted_writer_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, split, count, seed):
        (folder / split).mkdir()
        if split == "val":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "write_split", interrupted)
        with pytest.raises(KeyboardInterrupt):
            shapes.ensure_shapes(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != "shapes.lock"] == []
    folder = shapes.ensure_shapes(tmp_path, train_images=2, val_images=1)
    assert len(list((folder / "val").iterdir())) == 1


def test_without_a_working_lock_the_first_one_wins(tmp_path, monkeypatch):
    def overtaken(folder, split, count, seed):
        if split == "train":
            (tmp_path / "shapes").mkdir()
            info = {"version": shapes.VERSION, "seed": 0, **SMALL}
            (tmp_path / "shapes" / "info.json").write_text(json.dumps(info))

    monkeypatch.setattr(shapes, "write_split", overtaken)
    folder = shapes.ensure_shapes(tmp_path, **SMALL)
    assert [path.name for path in folder.iterdir()] == ["info.json"]  # the other's, untouched
    assert not list(tmp_path.glob("shapes.partial-*"))


def test_a_data_set_that_is_there_is_used_as_it_is(tmp_path, monkeypatch):
    folder = shapes.ensure_shapes(tmp_path, seed=3, train_images=2, val_images=1)
    monkeypatch.setattr(shapes, "write_split", None)
    before = digests(folder)
    assert shapes.ensure_shapes(tmp_path) == folder
    assert shapes.ensure_shapes(tmp_path, seed=3, train_images=2) == folder
    assert digests(folder) == before


def test_others_can_read_it(folder):
    """The temporary folder is private to its owner: what was renamed out of it must not be."""
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"version": 0, "seed": 0, "train_images": 4000, "val_images": 500}, "version 0, not 1.*remove"),
        ({"version": 1, "seed": 0, "train_images": 7, "val_images": 500}, "train_images 7, not 60.*remove"),
        ({"version": 1}, "something other"),
        (["a list"], "something other"),
        (None, "something other"),
    ],
)
def test_a_folder_of_another_kind_is_named_and_kept(tmp_path, info, message):
    folder = tmp_path / "shapes"
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    if info is not None:
        (folder / "info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=message) as caught:
        shapes.ensure_shapes(tmp_path, **SMALL)
    assert str(folder) in str(caught.value)
    assert (folder / "mine.txt").read_text() == "precious"


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/datasets/shapes .*set DETECTRON2_DATASETS"):
        shapes.ensure_shapes(tmp_path / "file" / "datasets", **SMALL)


# Where it goes


def test_root_is_the_environments(tmp_path, monkeypatch):
    assert shapes.datasets_root() == tmp_path / "cache" / "detectron2-detr"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert shapes.datasets_root() == tmp_path / "home" / ".cache" / "detectron2-detr"
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "new" / "datasets"))
    assert shapes.datasets_root() == tmp_path / "new" / "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/datasets")
    assert shapes.datasets_root() == tmp_path / "home" / "datasets"
    assert list(tmp_path.iterdir()) == []  # only asked, nothing made


def test_read_only_datasets_fall_back_to_the_cache(tmp_path, monkeypatch, caplog):
    read_only = tmp_path / "datasets"
    read_only.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(read_only))
    # Not by chmod, which does not stop root.
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != read_only and real(path, mode))
    monkeypatch.setattr(shapes, "COUNTS", {"train": 2, "val": 1})
    root = shapes.datasets_root()
    assert root == tmp_path / "cache" / "detectron2-detr"
    with caplog.at_level("WARNING"):
        assert shapes.ensure_shapes(root) == root / "shapes"
    assert f"{read_only} is not writable" in caplog.text
    assert list(read_only.iterdir()) == []

    # A data set that somebody else put there is used all the same.
    shapes.ensure_shapes(read_only)
    assert shapes.datasets_root() == read_only


# How Detectron2 sees it


@pytest.fixture
def registered(tmp_path, monkeypatch, unregistered):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    shapes.register_shapes()
    return tmp_path / "shapes"


def test_registering_is_idempotent_and_writes_nothing(registered, monkeypatch):
    loader = DatasetCatalog[NAMES[0]]
    monkeypatch.setenv("DETECTRON2_DATASETS", "/elsewhere")
    shapes.register_shapes()
    assert DatasetCatalog[NAMES[0]] is loader
    assert MetadataCatalog.get(NAMES[0]).image_root == str(registered / "train")
    assert list(registered.parent.iterdir()) == []


def test_loading_generates_and_gives_standard_dicts(registered, monkeypatch, caplog):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 40, "val": 3})
    with caplog.at_level("INFO"):
        dicts = DatasetCatalog.get("shapes_train")
    assert str(registered) in caplog.text
    assert len(dicts) == 40
    metadata = MetadataCatalog.get("shapes_train")
    isthing = [True] * 4 + [False] * 3
    for record in dicts:
        assert (record["height"], record["width"]) == (128, 128)
        assert os.path.isfile(record["file_name"])
        assert os.path.isfile(record["pan_seg_file_name"])
        for annotation in record["annotations"]:
            assert annotation["bbox_mode"] == BoxMode.XYWH_ABS
            assert annotation["category_id"] in range(4)
        for segment in record["segments_info"]:
            assert segment["isthing"] == isthing[segment["category_id"]]
        # Contiguous ids of both kinds of annotation mean the same classes.
        things = [s["category_id"] for s in record["segments_info"] if s["isthing"]]
        assert [a["category_id"] for a in record["annotations"]] == things
    assert os.path.isfile(metadata.json_file)
    assert len(DatasetCatalog.get("shapes_val")) == 3


def test_panoptic_sets_are_those_of_the_same_files(registered, monkeypatch):
    monkeypatch.setattr(shapes, "COUNTS", {"train": 5, "val": 3})
    dicts, others = DatasetCatalog.get("shapes_val_panoptic"), DatasetCatalog.get("shapes_val")
    assert len(dicts) == 3
    for record, other in zip(dicts, others, strict=True):
        assert record.keys() == {"file_name", "image_id", "pan_seg_file_name", "segments_info"}
        assert record == {key: other[key] for key in record}
    metadata = MetadataCatalog.get("shapes_val_panoptic").as_dict()
    other = MetadataCatalog.get("shapes_val").as_dict()
    assert metadata.pop("evaluator_type") == "coco_panoptic_seg"
    assert {key: other[key] for key in metadata if key != "name"} == {
        key: value for key, value in metadata.items() if key != "name"
    }


def test_metadata_are_there_before_loading_and_agree_with_the_files(registered):
    metadata = MetadataCatalog.get("shapes_val")
    assert metadata.thing_classes == ["disc", "square", "triangle", "star"]
    assert metadata.stuff_classes == ["disc", "square", "triangle", "star", "sky", "water", "grass"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 4: 2, 7: 3}
    assert metadata.stuff_dataset_id_to_contiguous_id == {9: 4, 12: 5, 17: 6}
    assert (len(metadata.thing_colors), len(metadata.stuff_colors)) == (4, 7)
    assert (metadata.evaluator_type, metadata.ignore_label, metadata.label_divisor) == ("coco", 255, 1000)

    assert shapes.ensure_shapes(train_images=2, val_images=2) == registered
    for path in (metadata.json_file, metadata.panoptic_json):
        assert os.path.isfile(path)
    for path in (metadata.image_root, metadata.panoptic_root):
        assert len(os.listdir(path)) == 2
    panoptic = json.loads((registered / "annotations" / "panoptic_val.json").read_text())
    contiguous = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}
    for category in panoptic["categories"]:
        assert metadata.stuff_classes[contiguous[category["id"]]] == category["name"]
        assert metadata.stuff_colors[contiguous[category["id"]]] == category["color"]
