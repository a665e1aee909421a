"""Panoptic JSON and PNGs, through all checks, the mapper and the losses; held to the JSON and the PNG on their own."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic
from detectron2.modeling import build_model
from hypothesis import strategies as st
from PIL import Image

from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine.data_checks import check_test_sets, check_training_sets
from detr.engine.defaults import load_config
from detr.errors import InputError
from tests.conftest import QUICKSTART, TINY, as_opts
from tests.fuzz.coco import UNCHANGED, check_losses
from tests.fuzz.odd_values import json_files
from tests.fuzz.outcome import RIGHT, Kind, check_line

NAME = "fuzzed_panoptic"
SHAPE = (24, 32)  # height and width
IDS = {"a": 7, "b": 300, "c": 65536 + 5}  # of the segments in the PNG: one byte, two and three
CLASSES = {1: 0, 5: 1, 9: 2}  # category id -> contiguous id; 1 is a thing
DOCUMENT = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 32, "height": 24}],
    "categories": [
        {"id": 1, "name": "cat", "isthing": 1},
        {"id": 5, "name": "grass", "isthing": 0},
        {"id": 9, "name": "sky", "isthing": 0},
    ],
    "annotations": [
        {
            "image_id": 1,
            "file_name": "1.png",
            "segments_info": [
                {"id": IDS["a"], "category_id": 1, "iscrowd": 0, "area": 8 * 32, "bbox": [0, 0, 32, 8]},
                {"id": IDS["b"], "category_id": 5, "iscrowd": 0, "area": 8 * 32, "bbox": [0, 8, 32, 8]},
                {"id": IDS["c"], "category_id": 9, "iscrowd": 0, "area": 6 * 32, "bbox": [0, 16, 32, 6]},
            ],
        }
    ],
}
PNGS = ["good"] * 12 + ["cut", "flipped", "gray", "palette", "alpha", "16 bits", "size", "other id", "one pixel",
                         "empty", "text", "no void"]  # fmt: skip


def segment_ids(kind: str = "good") -> np.ndarray:
    height, width = SHAPE if kind != "size" else (SHAPE[0], SHAPE[1] + 1)
    ids = np.zeros((height, width), dtype=np.int64)
    ids[:8], ids[8:16], ids[16:22] = IDS["a"], IDS["b"], IDS["c"]
    if kind == "other id":
        ids[23] = 256**3 - 1
    if kind == "one pixel":
        ids[:8], ids[0, 0] = 0, IDS["a"]
    if kind == "no void":
        ids[22:] = IDS["c"]
    return ids


def png(kind: str, at: float) -> bytes:
    """at: in [0, 1), the place of a damage"""
    ids = segment_ids(kind)
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
    image = Image.fromarray(colors)
    if kind == "16 bits":
        image = Image.fromarray((ids % 65536).astype(np.uint16))
    modes = {"gray": "L", "palette": "P", "alpha": "RGBA"}
    file = io.BytesIO()
    image.convert(modes.get(kind, image.mode)).save(file, "PNG")
    data = bytearray(file.getvalue())
    place = int(at * len(data))
    if kind == "cut":
        return bytes(data[:place])
    if kind == "flipped":
        data[place] ^= 1 << place % 8
    return {"empty": b"", "text": b"no PNG"}.get(kind, bytes(data))


def run(case: dict[str, Any], folder: Path) -> str:
    Image.fromarray(np.full((*SHAPE, 3), 100, dtype=np.uint8)).save(folder / "1.jpg")
    (folder / "1.png").write_bytes(png(*case["png"]))
    path = folder / "panoptic.json"
    path.write_bytes(case["json"])
    metadata = {
        "thing_classes": ["cat"],
        "stuff_classes": ["cat", "grass", "sky"],
        "thing_dataset_id_to_contiguous_id": {1: 0},
        "stuff_dataset_id_to_contiguous_id": {5: 1, 9: 2},
    }
    register_coco_panoptic(NAME, metadata, str(folder), str(folder), str(path))
    cfg = config()
    try:
        rows = check_test_sets(cfg)
        dicts = check_training_sets(cfg, rows)
        mapped = list(map(DetrPanopticMapper(cfg, is_train=True), dicts))
    except InputError as error:
        return check_line(error, NAME, str(folder))
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)
    _compare(json.loads(case["json"]), mapped, segment_ids(case["png"][0]))
    check_losses(model(), mapped)
    return RIGHT


@functools.cache
def config() -> CfgNode:
    settings = {
        "DATASETS.TRAIN": (NAME,),
        "DATASETS.TEST": (NAME,),
        "MODEL.DETR.NUM_CLASSES": 3,
        "MODEL.MASK_ON": True,
        "MODEL.DETR.PANOPTIC.ENABLED": True,
        "MODEL.DETR.PANOPTIC.THINGS": 1,
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4"],
    }
    return load_config(str(QUICKSTART), as_opts({**TINY, **UNCHANGED, **settings}))


@functools.cache
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(config())


def _compare(content: dict[str, Any], mapped: list[dict[str, Any]], ids: np.ndarray) -> None:
    assert len(mapped) == len(content["annotations"]), "images"
    for x, annotation in zip(mapped, content["annotations"], strict=True):
        targets = x["instances"]
        expected = []
        for segment in annotation["segments_info"]:
            mask = ids == int(segment["id"])
            rows, columns = np.nonzero(mask)
            if np.ptp(rows) and np.ptp(columns):
                expected.append((CLASSES[segment["category_id"]], mask))
        assert targets.gt_classes.tolist() == [label for label, _ in expected], "classes"
        for mask, box, (_, truth) in zip(targets.gt_masks.tensor.numpy(), targets.gt_boxes, expected, strict=True):
            assert (mask == truth).all(), "a mask"
            rows, columns = np.nonzero(truth)
            assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()], "a box"


PANOPTIC = Kind(
    st.fixed_dictionaries(
        {
            "json": json_files(DOCUMENT, ["isthing", "iscrowd"]),
            "png": st.tuples(st.sampled_from(PNGS), st.floats(0, 0.99)),
        }
    ),
    run,
)
