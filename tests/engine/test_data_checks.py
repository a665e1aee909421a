"""Data sets are checked once, by the main process, and every rank gets the verdict."""

import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from detr.engine import data_checks
from detr.engine.defaults import load_config
from detr.errors import InputError
from tests.conftest import QUICKSTART

IMAGE = {"file_name": "a.jpg", "height": 24, "width": 32}


def _check_as_rank(rank, store, results):
    """Checks a training and a test set whose objects are bad on one of the ranks, and degenerate on both."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("detr").addHandler(handler)
    for bad in (0, 1):
        obj = {"bbox": [3, 3, 3, 3], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 9 if rank == bad else 0}
        good = {"bbox": [0, 0, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
        segmentation = {"segmentation": [[0, 0, 5, 0, 5, 5]]}
        annotations = [{**good, **segmentation}, obj if rank == bad else {**obj, **segmentation}]
        DatasetCatalog.register(f"bad_{bad}", lambda x=annotations: [{**IMAGE, "annotations": x}])
        for check, key, masks in (
            (data_checks.check_training_sets, "TRAIN", "False"),
            (data_checks.check_test_sets, "TEST", "True"),
        ):
            opts = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()", f"DATASETS.{key}", f"('bad_{bad}',)"]
            cfg = load_config(str(QUICKSTART), [*opts, "MODEL.MASK_ON", masks, "DATALOADER.CHECK_IMAGES", "False"])
            warnings.clear()
            try:
                check(cfg)
                problem = ""
            except InputError as error:
                problem = str(error)
            results[rank, bad, key] = problem, list(warnings)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_main_process_checks_for_all_ranks(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(_check_as_rank, args=(tmp_path / "store", results), nprocs=2)
        results = dict(results)
    for key in ("TRAIN", "TEST"):
        assert results[0, 0, key][0].startswith("a.jpg has an object of category 9")
        assert results[1, 0, key] == (results[0, 0, key][0], [])
        assert results[0, 1, key][0] == results[1, 1, key][0] == ""
    assert any("1 of 2 boxes are dropped" in warning for warning in results[0, 1, "TRAIN"][1])
    assert results[1, 1, "TRAIN"][1] == []


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("Balanced", "is 'Balanced': it must be one of TrainingSampler, Repeat"),
        ("", "is '': it must be one of"),
        ("RandomSubsetTrainingSampler", r"reads DATALOADER\.RANDOM_SUBSET_RATIO, which the config does not have"),
        ("WeightedTrainingSampler", r"reads DATASETS\.TRAIN_REPEAT_FACTOR, which the config does not have"),
        ("WeightedCategoryTrainingSampler", r"reads DATASETS\.TRAIN_REPEAT_FACTOR"),
    ],
)
def test_a_sampler_that_cannot_be_built_is_an_error(shapes_root, tiny_config, sampler, message):
    cfg = tiny_config()
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    with pytest.raises(InputError, match=rf"DATALOADER\.SAMPLER_TRAIN .*{message}"):
        data_checks.check_training_sets(cfg)


def test_segments_of_a_set_that_is_not_registered_as_panoptic_are_an_error(tiny_config):
    x = {"file_name": "a.jpg", "pan_seg_file_name": "a.png", "segments_info": [{"id": 1, "category_id": 0}]}
    DatasetCatalog.register("mine", lambda: [x])
    try:
        for check in (data_checks.check_training_sets, data_checks.check_test_sets):
            cfg = tiny_config({"DATASETS.TRAIN": "('mine',)", "DATASETS.TEST": "('mine',)"})
            with pytest.raises(InputError, match=r"a\.jpg of the data set mine has .*register_coco_panoptic"):
                check(cfg)
    finally:
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")


def test_masks_without_a_pixel_are_counted(tiny_config, tmp_path, caplog):
    """They cannot be found: the polygon is beside the image."""
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    obj = {"bbox": [1, 2, 8, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    polygons = [[1, 2, 9, 2, 9, 10, 1, 10]], [[40, 2, 48, 2, 48, 10]]
    objects = [{**obj, "segmentation": polygon} for polygon in polygons]
    DatasetCatalog.register("mine", lambda: [{"file_name": tmp_path / "a.png", "image_id": 3, "annotations": objects}])
    MetadataCatalog.get("mine").thing_classes = ["cat"]
    settings = {"DATASETS.TEST": "('mine',)", "MODEL.DETR.NUM_CLASSES": 1, "MODEL.MASK_ON": True}
    try:
        data_checks.check_test_sets(tiny_config(settings))
    finally:
        DatasetCatalog.remove("mine")
        MetadataCatalog.remove("mine")
    assert ": 1 masks have no pixel in their image, the first in image 3" in caplog.text
