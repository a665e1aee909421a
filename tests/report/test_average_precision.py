"""AP by class and size against pycocotools, on made-up and on real data."""

import copy
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest

from detr.data.coco_file import read_coco
from detr.evaluation.matching import NOTHING, match
from detr.report.average_precision import box_precision, curve, mask_precision
from tests.evaluation.random_coco import HEIGHT, WIDTH, expected, random_case
from tests.report.cases import content, detection, thing

TINY = Path(__file__).resolve().parents[3] / "shared" / "datasets" / "tiny" / "coco"


def _by_pycocotools(precision):
    """precision: (T, R, K, A). In the order of the fields of ``AveragePrecision``: (6, K)."""
    precision = np.where(precision < 0, np.nan, precision)
    sizes = [precision[..., a].mean((0, 1)) for a in range(4)]
    return np.array([sizes[0], precision[0, :, :, 0].mean(0), precision[5, :, :, 0].mean(0), *sizes[1:]])


def _check(truth, results, task):
    matches = match(truth, results)
    classes = len(truth["categories"])
    rows, mean = box_precision(matches, classes) if task == "bbox" else mask_precision(matches, classes, truth, results)
    counted = expected(truth, results, task)
    precision = counted.eval["precision"][..., -1]
    np.testing.assert_allclose(np.array([[*vars(x).values()] for x in rows]).T, _by_pycocotools(precision), atol=1e-9)
    stats = np.where(counted.stats[:6] < 0, np.nan, counted.stats[:6])
    np.testing.assert_allclose([*vars(mean).values()], stats, atol=1e-9)
    return matches, counted


@pytest.mark.parametrize("seed", range(3))
def test_boxes_and_curves_are_those_of_pycocotools(seed):
    """With crowds, equal scores, empty images, classes without objects and without detections."""
    truth, results = random_case(seed)
    matches, counted = _check(truth, results, "bbox")
    objects = matches.objects.count(4)
    assert (objects == 0).any()
    assert (objects > 0).sum() >= 2
    for i, number in enumerate(objects.tolist()):
        own = (matches.label == i) & ~matches.ignored
        found = curve(matches.score[own], matches.found[own] != NOTHING, number)
        theirs, scores = (counted.eval[key][0, :, i, 0, -1] for key in ("precision", "scores"))
        np.testing.assert_allclose(np.nan_to_num(found.precision, nan=-1), theirs, atol=1e-9)
        reached = ~np.isnan(found.scores)
        np.testing.assert_allclose(found.scores[reached], scores[reached])
        assert (theirs[~reached] <= 0).all()


@pytest.mark.parametrize("seed", range(2))
def test_masks_are_those_of_pycocotools(seed):
    truth, results = random_case(seed)
    for x in truth["annotations"]:
        rle = mask_util.frPyObjects(x["segmentation"], HEIGHT, WIDTH)
        x["segmentation"] = rle[0] if isinstance(rle, list) else rle
    _check(truth, results, "segm")


def test_detections_beyond_a_hundred_of_an_image_and_class_are_left_out():
    objects = [thing(1, "cat", 20 * i) for i in range(110)]
    truth = content(*objects)
    results = [detection(1, "cat", 20 * i, 0.9 - i / 1000) for i in range(110)]
    matches, _ = _check(truth, results, "bbox")
    assert len(matches.score) == 100


@pytest.mark.skipif(not TINY.is_dir(), reason="no real images in ../shared/datasets/tiny")
def test_real_objects_with_shaken_boxes_and_masks():
    truth = read_coco(str(next((TINY / "annotations").glob("instances_val*.json"))))
    random = np.random.default_rng(0)
    truth["images"] = truth["images"][:25]
    kept = {x["id"] for x in truth["images"]}
    truth["annotations"] = [x for x in truth["annotations"] if x["image_id"] in kept]
    truth["categories"] = truth["categories"][:30]
    ids = {x["id"] for x in truth["categories"]}
    truth["annotations"] = [x for x in truth["annotations"] if x["category_id"] in ids]
    images = {x["id"]: x for x in truth["images"]}
    results = []
    for x in truth["annotations"]:
        image = images[x["image_id"]]
        size = (image["height"], image["width"])
        rle = mask_util.frPyObjects(x["segmentation"], *size)
        x["segmentation"] = mask_util.merge(rle) if isinstance(rle, list) else rle
        box = (np.array(x["bbox"]) + 0.08 * random.normal(0, 1, 4) * np.array(x["bbox"])[[2, 3, 2, 3]]).tolist()
        (mask,) = mask_util.frPyObjects(np.array([box]), *size)
        labels = [x["category_id"], random.choice([y["id"] for y in truth["categories"]])]
        for label in labels:
            score = round(float(random.random()), 2)
            results.append({"image_id": x["image_id"], "category_id": int(label), "bbox": box, "score": score})
            results[-1]["segmentation"] = copy.deepcopy(mask)
    for task in ("bbox", "segm"):
        _, counted = _check(truth, results, task)
        assert counted.stats[0] > 0.02
