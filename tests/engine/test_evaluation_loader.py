"""Evaluation in batches of one size: each image once, none padded, and the results of single images in their order."""

import json
import threading

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from detr.config_values import check_values
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.engine import progress
from detr.engine.progress import CountedLoader, Meter
from detr.engine.test_loader import build_evaluation_loader, group_by_size
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.conftest import QUICKSTART, TINY, as_opts
from tests.lively import build_lively, load_config

# (height, width); with INPUT.MIN_SIZE_TEST 64 and MAX_SIZE_TEST 100, two pairs of sizes become one
SIZES = [(96, 128), (128, 96), (48, 64), (64, 64), (128, 96), (40, 200), (96, 128), (96, 96), (96, 128)]
RESIZED = [(64, 85), (85, 64), (64, 85), (64, 64), (85, 64), (20, 100), (64, 85), (64, 64), (64, 85)]
SETTINGS = {
    **TINY,
    "DATALOADER.NUM_WORKERS": 0,
    "DATASETS.TEST": ("many_sizes",),
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 100,
}


@pytest.fixture
def many_sizes(tmp_path, registered):
    """Dicts of noise in `SIZES`, whose ids do not ascend, with one object each."""
    dicts, random = [], np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        path = tmp_path / f"{index}.png"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        corners = [4, 4, 30, 4, 30, 34, 4, 34]
        thing = {"bbox": [4, 4, 30, 34], "bbox_mode": 0, "category_id": 0, "segmentation": [corners], "iscrowd": 0}
        x = {"file_name": str(path), "image_id": 100 - index, "height": height, "width": width}
        dicts.append({**x, "annotations": [thing]})
    registered.append("many_sizes")
    DatasetCatalog.register("many_sizes", lambda: [dict(x) for x in dicts])
    MetadataCatalog.get("many_sizes").thing_classes = ["disc", "square", "triangle", "star"]
    return dicts


def config(**settings):
    return load_config(str(QUICKSTART), as_opts({**SETTINGS, **settings}))


def batch_of(number):
    return {"TEST.IMS_PER_BATCH": number}


def test_images_of_one_size_share_a_batch_and_the_largest_come_first(many_sizes):
    del many_sizes[4]["width"], many_sizes[8]["height"]  # as in Detectron2's panoptic sets
    found = group_by_size(many_sizes, range(9), config(**batch_of(3)))
    assert found == [[0, 2, 6], [8], [1, 4], [3, 7], [5]]


def test_an_image_of_unknown_size_is_alone(many_sizes):
    del many_sizes[1]["width"], many_sizes[6]["width"]
    many_sizes[6]["file_name"] = many_sizes[1]["file_name"] = "store://remote.png"
    found = group_by_size(many_sizes, range(9), config(**batch_of(9)))
    assert found == [[0, 2, 8], [4], [3, 7], [5], [1], [6]]


@pytest.mark.parametrize("number", [1, 2, 3, 100])
def test_every_image_comes_once_and_none_is_padded(many_sizes, number):
    loader = build_evaluation_loader(config(**batch_of(number)), "many_sizes")
    batches = list(loader)
    assert len(loader) == len(batches)
    assert loader.num_images == len(SIZES)
    assert max(map(len, batches)) == min(number, 4)
    found = {x["image_id"]: tuple(x["image"].shape[1:]) for batch in batches for x in batch}
    assert found == {100 - index: size for index, size in enumerate(RESIZED)}
    assert all(len({x["image"].shape for x in batch}) == 1 for batch in batches)
    if number == 1:
        assert [batch[0]["image_id"] for batch in batches] == [x["image_id"] for x in many_sizes]


def test_without_resizing_a_size_is_that_of_the_file(many_sizes):
    cfg = config(**batch_of(9), **{"INPUT.MIN_SIZE_TEST": 0})
    batches = list(build_evaluation_loader(cfg, "many_sizes"))
    assert sorted(map(len, batches)) == [1, 1, 1, 1, 2, 3]
    assert all(len({x["image"].shape for x in batch}) == 1 for batch in batches)


@pytest.mark.parametrize("images", [1, 5, 7])
def test_ranks_share_the_images_in_their_order(many_sizes, monkeypatch, images):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    DatasetCatalog.remove("many_sizes")
    DatasetCatalog.register("many_sizes", lambda: many_sizes[:images])
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = build_evaluation_loader(config(**batch_of(2)), "many_sizes").batch_sampler
        found.append(sorted(index for batch in batches for index in batch))
    assert found[0] == list(range((images + 1) // 2))
    assert found[0] + found[1] == list(range(images))


@pytest.mark.parametrize("kind", ["detection", "panoptic"])
def test_results_are_those_of_single_images_in_the_order_of_the_data_set(kind, many_sizes, tmp_path, shapes_root):
    """Of images of many sizes; and, of panoptic maps, of one size."""
    path = QUICKSTART.with_name(f"shapes_{kind}.yaml")
    own = {"MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35, "DATASETS.TEST": ("shapes_val_panoptic",)}
    settings = {**SETTINGS, **(own if kind == "panoptic" else {"MODEL.MASK_ON": True})}
    model, found = build_lively(path, settings), []
    for number in (1, 3):
        folder = tmp_path / str(number)
        cfg = load_config(str(path), as_opts({**settings, **batch_of(number), "OUTPUT_DIR": folder}))
        results = Trainer.test(cfg, model)
        found.append((results, *(json.loads(x.read_text()) for x in sorted((folder / "inference").glob("*.json")))))
    if kind == "panoptic":
        assert {len(batch) for batch in build_evaluation_loader(cfg, "shapes_val_panoptic")} == {3, 1}
    (results, detections, *maps), (batched, batched_detections, *batched_maps) = found
    assert len(detections) > 5 * len(SIZES)
    for ours, theirs in zip(batched_detections, detections, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("image_id", "category_id"):
            assert ours[key] == theirs[key]
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
    for ours, theirs in zip(batched_maps, maps, strict=True):
        assert [x["image_id"] for x in ours["annotations"]] == [x["image_id"] for x in theirs["annotations"]]
        for a, b in zip(ours["annotations"], theirs["annotations"], strict=True):
            for segment, expected in zip(a["segments_info"], b["segments_info"], strict=True):
                assert segment == pytest.approx(expected, rel=1e-4, abs=2)
                assert (segment["id"], segment["category_id"]) == (expected["id"], expected["category_id"])
    for task, numbers in results.items():
        assert batched[task] == pytest.approx(numbers, abs=0.1, nan_ok=True)


def test_the_next_batch_is_decoded_while_one_is_used(many_sizes, monkeypatch):
    second = threading.Event()
    read = DetrDatasetMapper.read

    def reading(mapper, x):
        if x["image_id"] == 99:
            second.set()
        return read(mapper, x)

    monkeypatch.setattr(DetrDatasetMapper, "read", reading)
    batches = iter(build_evaluation_loader(config(), "many_sizes"))
    assert next(batches)[0]["image_id"] == 100
    assert second.wait(timeout=60)


def test_a_damaged_image_is_named_in_its_turn(many_sizes, tmp_path):
    (tmp_path / "2.png").write_bytes(b"damaged")
    batches = iter(build_evaluation_loader(config(), "many_sizes"))
    assert [next(batches)[0]["image_id"] for _ in range(2)] == [100, 99]
    with pytest.raises(InputError, match=r"2\.png"):
        next(batches)


def test_workers_give_the_same(many_sizes):
    expected, found = (
        list(build_evaluation_loader(config(**batch_of(3), **{"DATALOADER.NUM_WORKERS": number}), "many_sizes"))
        for number in (0, 1)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert [x["image_id"] for x in ours] == [x["image_id"] for x in theirs]
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(ours, theirs, strict=True))


def test_progress_counts_images(many_sizes, monkeypatch):
    counts = []

    class Recorded(Meter):
        def close(self):
            super().close()
            counts.append((self.count, self.total))

    monkeypatch.setattr(progress, "Meter", Recorded)
    loader = build_evaluation_loader(config(**batch_of(3)), "many_sizes")
    assert sum(map(len, CountedLoader(loader, "many_sizes"))) == len(SIZES)
    list(CountedLoader([[1, 2], [3]], "a user's loader"))
    assert counts == [(len(SIZES), len(SIZES)), (2, 2)]


def test_an_impossible_batch_is_refused():
    with pytest.raises(InputError, match=r"TEST\.IMS_PER_BATCH"):
        check_values(config(**batch_of(0)))
