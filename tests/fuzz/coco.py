"""Files in COCO's instances format, through all checks of a training and an evaluation, the mapper and the losses.

What comes out is held to the JSON, read and computed here on its own.
"""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling import build_model
from hypothesis import strategies as st
from PIL import Image

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.ground_truth import load_truth
from detr.engine.data_checks import check_test_sets, check_training_sets
from detr.engine.defaults import load_config
from detr.errors import InputError
from tests.conftest import QUICKSTART, TINY, as_opts
from tests.fuzz.odd_values import json_files
from tests.fuzz.outcome import RIGHT, Kind, as_json, check_line, recorded_warnings

SIZES = {"a.png": (40, 30), "turned.jpg": (24, 32), "empty.png": (16, 16)}  # width and height of the upright images
POLYGON = [2, 2, 20, 2, 20, 20, 2, 20]
COMPRESSED = mask_util.encode(np.asfortranarray(np.tri(30, 40, dtype=np.uint8)))["counts"].decode()
DOCUMENT = {
    "images": [
        {"id": index, "file_name": name, "width": width, "height": height}
        for index, (name, (width, height)) in enumerate(SIZES.items(), start=1)
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [2, 2, 18, 18], "area": 324, "iscrowd": 0,
         "segmentation": [POLYGON]},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [30.5, 20.25, 12, 12], "area": 100.5, "iscrowd": 0,
         "segmentation": [[30, 20, 42, 20, 42, 32], [1, 1, 5, 1, 5, 5, 1, 5]]},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0, 0, 24, 32], "area": 600, "iscrowd": 1,
         "segmentation": {"size": [32, 24], "counts": [100, 200, 468]}},
        {"id": 4, "image_id": 2, "category_id": 3, "bbox": [1, 1, 10, 10], "area": 100, "iscrowd": 0,
         "segmentation": {"size": [32, 24], "counts": [33, 20, 715]}},
        {"id": 5, "image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 30], "area": 700, "iscrowd": 0,
         "segmentation": {"size": [30, 40], "counts": COMPRESSED}},
    ],
}  # fmt: skip
EXTRA_KEYS = ["ignore", "score", "keypoints", "bbox_mode", "license"]
# What the mapper leaves as it is: then its targets are those of the file.
UNCHANGED = {"INPUT.MIN_SIZE_TRAIN": (0,), "INPUT.RANDOM_FLIP": "none", "INPUT.CROP.ENABLED": False}
NAME = "fuzzed"


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if name == "turned.jpg":
            exif = Image.Exif()
            exif[0x0112] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(folder / name, exif=exif)
        else:
            image.save(folder / name)


def run(case: dict[str, Any], folder: Path) -> str:
    write_images(folder)
    path = folder / "annotations.json"
    path.write_bytes(case["json"])
    cfg = config(case["masks"]).clone()
    cfg.TEST.COCO_BACKEND = case["backend"]
    register_coco_instances(NAME, {}, str(path), str(folder))
    try:
        with recorded_warnings() as warnings:
            dicts = check_training_sets(cfg, check_test_sets(cfg))
            mapped = list(map(DetrDatasetMapper(cfg, is_train=True), dicts))
            truth = load_truth(NAME, case["masks"]).content
    except InputError as error:
        return check_line(error, NAME, str(folder), "/dev/")  # an image may be called so
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
    content = json.loads(case["json"])
    _compare(content, mapped, truth, warnings, case["masks"])
    check_losses(model(case["masks"]), mapped)
    return RIGHT


@functools.cache
def config(masks: bool) -> CfgNode:
    sets = {"DATASETS.TRAIN": (NAME,), "DATASETS.TEST": (NAME,), "MODEL.DETR.NUM_CLASSES": 2, "MODEL.MASK_ON": masks}
    network: dict[str, Any] = {"MODEL.RESNETS.NORM": "FrozenBN"}  # BN cannot be trained on an image of 16 x 16 alone
    if masks:
        network["MODEL.RESNETS.OUT_FEATURES"] = ["res2", "res3", "res4"]
    return load_config(str(QUICKSTART), as_opts({**TINY, **UNCHANGED, **sets, **network}))


@functools.cache
def model(masks: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(config(masks))


def check_losses(detr: torch.nn.Module, mapped: list[dict[str, Any]]) -> None:
    with torch.no_grad():
        losses = detr(mapped)
    assert all(value.isfinite() for value in losses.values()), f"losses {losses}"


def _compare(
    content: dict[str, Any], mapped: list[dict[str, Any]], truth: dict[str, Any], warnings: list[str], masks: bool
) -> None:
    categories = sorted(_whole(category["id"]) for category in content["categories"])
    by_image = {_whole(image["id"]): image for image in content["images"]}
    assert [x["image_id"] for x in mapped] == sorted(by_image), "images"
    dropped = crowds = twins = 0
    for x in mapped:
        image = by_image[x["image_id"]]
        width, height = SIZES[Path(image["file_name"]).name]
        expected = []
        for obj in content.get("annotations", []):
            if _whole(obj["image_id"]) != x["image_id"]:
                continue
            if obj.get("ignore") or obj.get("iscrowd") not in (None, 0, False, "0"):
                crowds += 1
                continue
            box = _clipped(obj["bbox"], width, height)
            if box is None:
                dropped += 1
                continue
            expected.append((categories.index(_whole(obj["category_id"])), box, obj))
        twins += len(expected) - len({(label, *box) for label, box, _ in expected})
        targets = x["instances"]
        assert targets.image_size == (height, width), "the image's size"
        assert targets.gt_classes.tolist() == [label for label, _, _ in expected], "classes"
        boxes = np.array([box for _, box, _ in expected]).reshape(-1, 4)
        assert np.allclose(targets.gt_boxes.tensor.numpy(), boxes, atol=1e-3), f"boxes {boxes.tolist()}"
        if masks:
            for mask, (_, _, obj) in zip(targets.gt_masks.tensor.numpy(), expected, strict=True):
                _compare_mask(mask, obj["segmentation"])
    objects = [x for x in truth.get("annotations", []) if not x["iscrowd"]]
    assert len(objects) == sum(len(x["instances"]) for x in mapped), "objects of the evaluation"
    assert sum(x["iscrowd"] for x in truth.get("annotations", [])) <= crowds, "crowds of the evaluation"
    assert all(0 < x["area"] < 1e10 or masks for x in objects), "areas"
    announced = [text for text in warnings if " boxes are dropped" in text]
    assert bool(announced) == bool(dropped), f"{dropped} dropped, announced {announced}"
    # Once for the training set, once for the test set
    assert sum(f": {twins} of " in text for text in warnings if "is each annotated twice" in text) == 2 * bool(twins)
    assert all(f": {dropped} of " in text for text in announced), f"{dropped} dropped, announced {announced}"


def _whole(value: Any) -> Any:
    """An id as the documentation reads it: whole numbers, and text that is none of them."""
    return int(value) if isinstance(value, float) else value


def _clipped(bbox: list[float], width: int, height: int) -> list[float] | None:
    x, y, w, h = map(float, bbox)
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    box = np.array([x1, y1, x2, y2], dtype=np.float32).tolist()
    return box if box[2] > box[0] and box[3] > box[1] and w > 0 and h > 0 else None


def _compare_mask(mask: np.ndarray, segmentation: Any) -> None:
    if isinstance(segmentation, dict):
        height, width = map(int, segmentation["size"])
        counts = segmentation["counts"]
        if isinstance(counts, list):
            values = np.arange(len(counts)) % 2
            expected = np.repeat(values, counts).reshape(width, height).T.astype(bool)
        else:
            expected = mask_util.decode({"size": [height, width], "counts": counts.encode()}).astype(bool)
        assert (mask == expected).all(), "a mask of an RLE"
        return
    parts = segmentation if any(isinstance(part, list) for part in segmentation) else [segmentation]
    flat = [np.array(part, dtype=float).ravel() for part in parts]
    polygons = [part.reshape(-1, 2) for part in flat if len(part) >= 6 and len(part) % 2 == 0]
    expected = np.zeros_like(mask)
    for polygon in polygons:
        expected |= _inside(polygon, mask.shape)
    steps = sum(np.abs(np.diff(polygon, axis=0, append=polygon[:1])).sum() for polygon in polygons)
    # pycocotools rounds borders to fifths of a pixel, and its fill of a polygon that crosses itself differs there.
    assert (mask != expected).sum() <= min(steps, 4 * sum(mask.shape)) + 4, f"{mask.sum()} for {expected.sum()} pixels"


def _inside(polygon: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which pixels' centers are inside, by the crossings of a ray to the left: (H, W) bool."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, dtype=bool)
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if y1 != y2:
            crosses = (y1 <= y) != (y2 <= y)
            inside ^= crosses & (x > x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside


@st.composite
def huge_images(draw: Any) -> bytes:
    """Sizes, coordinates and runs that agree with each other, and are too large for every program."""
    document = copy.deepcopy(DOCUMENT)
    side = draw(st.sampled_from([1, 1000, 65_535, 100_000, 10**6, 10**9, 2**31 - 1]))
    image = document["images"][0]
    image["height"], image["width"] = side, draw(st.sampled_from([1, side]))
    reach = draw(st.sampled_from([1, 3, 9, 10]))
    for annotation in document["annotations"]:
        if annotation["image_id"] != 1:
            continue
        polygon = [0, 0, reach * side, 0, 0, reach * side] * draw(st.sampled_from([1, 300]))
        rle = {"size": [side, image["width"]], "counts": [0, side * image["width"]]}
        annotation["segmentation"] = draw(st.sampled_from([[polygon], rle]))
        annotation["area"] = draw(st.sampled_from([0, 5]))
    return as_json(document).encode()


COCO = Kind(
    st.fixed_dictionaries(
        {
            "json": st.one_of(*[json_files(DOCUMENT, extra_keys=EXTRA_KEYS)] * 9, huge_images()),
            "masks": st.booleans(),
            "backend": st.sampled_from(["hotcoco", "pycocotools"]),
        }
    ),
    run,
)
