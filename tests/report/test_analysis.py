"""The report as a whole: its parts fit together, and runs with nothing in them have one too."""

import dataclasses
import math

import numpy as np
import pytest

from detr.errors import InputError
from detr.report import analyze
from detr.report.results import ERRORS, Run
from tests.evaluation.random_coco import random_case
from tests.report.cases import detection, make_run, thing


def _by_kind(report):
    return {x.kind: x.count for x in report.errors}


def test_a_report_of_a_few_boxes():
    objects = [
        thing(1, "cat", 0),
        thing(1, "cat", 100),
        thing(1, "dog", 200, size=40),
        thing(2, "dog", 0, size=100),
        thing(2, "dog", 500),
        thing(2, "cat", 0, size=900, crowd=True),
    ]
    found = [
        detection(1, "cat", 0, 0.9),
        detection(1, "cat", 102, 0.8),
        detection(1, "cat", 0, 0.7),
        detection(1, "dog", 200, 0.6, size=40),
        detection(2, "dog", 500, 0.2),
        detection(2, "dog", 800, 0.1),
    ]
    report = analyze(make_run(objects, found))
    assert (report.images, report.objects, report.most_objects, report.detections) == (2, 5, 3, 6)
    # F1 after each: 2/6, 4/7, 4/8, 6/9, 8/10, 8/11
    assert report.threshold == 0.15
    cat, dog, cow = report.classes
    assert (cat.name, cat.objects, cat.images, cat.sizes) == ("cat", 2, 1, (2, 0, 0))
    assert (dog.objects, dog.images, dog.sizes) == (3, 2, (1, 1, 1))
    assert (cat.counts.detections, cat.counts.found, dog.counts.detections, dog.counts.found) == (3, 2, 2, 2)
    assert (report.counts.objects, report.counts.detections, report.counts.found) == (5, 5, 4)
    assert cat.best_threshold == 0.75  # without the duplicate
    assert (cat.at_best.detections, cat.at_best.found) == (2, 2)
    assert cat.errors == dict.fromkeys(ERRORS, 0) | {"duplicate": 1}
    assert dog.errors == dict.fromkeys(ERRORS, 0) | {"missed": 1}
    assert _by_kind(report) == dict.fromkeys(ERRORS, 0) | {"duplicate": 1, "missed": 1}
    assert {x.kind: x.count_all for x in report.errors}["background"] == 1
    assert math.isnan(cow.box.ap)
    assert cow.best_threshold is None
    assert cow.at_best is None
    assert report.box.ap50 == pytest.approx((cat.box.ap50 + dog.box.ap50) / 2)
    assert report.mask is None


def test_the_worst_images_say_what_everything_in_them_is():
    objects = [
        thing(1, "cat", 0),
        thing(2, "cat", 0),
        thing(2, "cat", 100),
        thing(2, "cat", 200),
        thing(2, "dog", 300),
        thing(2, "dog", 400, size=200, crowd=True),
        thing(3, "cat", 0),
    ]
    found = [
        detection(1, "cat", 0, 0.9),
        detection(2, "cat", 0, 0.9),
        detection(2, "cat", 105, 0.8),
        detection(2, "dog", 200, 0.7),
        detection(2, "dog", 450, 0.65),
        detection(2, "dog", 900, 0.6),
        detection(2, "cow", 900, 0.01),
        detection(3, "cat", 500, 0.9),
    ]
    # Without these, F1 would be best at a higher threshold.
    objects += [thing(4, "cat", 20 * i) for i in range(9)]
    found += [detection(4, "cat", 20 * i, 0.58) for i in range(9)]
    run = make_run(objects, found, images=4)
    report = analyze(run)
    assert 0.01 < report.threshold <= 0.58
    first, second = report.worst
    assert (first.image_id, first.file, first.cost) == (2, "2.jpg", 4)
    assert first.truth_kinds == ("correct", "localization", "classification", "missed", "ignored")
    assert first.kinds == ("correct", "localization", "classification", "ignored", "background")
    assert first.scores.tolist() == [0.9, 0.8, 0.7, 0.65, 0.6]
    assert first.classes.tolist() == [0, 0, 1, 1, 1]
    assert first.truth_crowd.tolist() == [False] * 4 + [True]
    assert first.truth_boxes[1].tolist() == [100, 0, 110, 10]
    assert first.boxes[1].tolist() == [105, 0, 115, 10]
    assert (second.image_id, second.cost) == (3, 2)
    assert [x.image_id for x in analyze(run, worst=1).worst] == [2]


def test_what_missed_objects_have_in_common():
    """In image 1 a dog covers half of a cat; in image 2 a crowd covers another, which does not count."""
    objects = [
        thing(1, "cat", 0),
        thing(1, "dog", 5, size=40),
        thing(2, "cat", 0),
        thing(2, "cat", 100),
        thing(2, "cow", 0, size=50, crowd=True),
    ]
    found = [detection(1, "dog", 5, 0.9, size=40), detection(2, "cat", 100, 0.8), detection(2, "cat", 0, 0.01)]
    found += [detection(2, "cow", 300 + 20 * i, 0.5) for i in range(9)]
    report = analyze(make_run(objects, found))
    assert 0.5 < report.threshold <= 0.8
    assert dataclasses.astuple(report.missed) == (2, 1, 1, 2, 1, 3)


def test_numbers_of_a_larger_case_agree_with_each_other():
    truth, results = random_case(1)
    ids = (9, 2, 7, 3)
    names = tuple(f"class {i}" for i in ids)
    results = [{key: x[key] for key in ("image_id", "category_id", "bbox", "score")} for x in results]
    report = analyze(Run("", {}, "", {}, "random", truth, names, ids, results, {}), worst=100)
    assert report.confusion[:-1].sum() == report.objects
    assert report.confusion[:-1].sum(axis=1).tolist() == [x.objects for x in report.classes]
    assert sum(x.counts.found for x in report.classes) == report.counts.found
    for error in report.errors:
        assert sum(x.errors[error.kind] for x in report.classes) == error.count
    assert sum(x.cost for x in report.worst) == sum(x.count for x in report.errors)
    costs = [x.cost for x in report.worst]
    assert costs == sorted(costs, reverse=True)
    assert report.classes[1].objects == sum(x["category_id"] == 2 and not x["iscrowd"] for x in truth["annotations"])
    for x in report.classes:
        if x.at_best is not None:
            assert x.at_best.f1 >= x.counts.f1


CAT = [thing(1, "cat", 0)]


@pytest.mark.parametrize(
    ("objects", "detections"),
    [
        (CAT, []),
        (CAT, [detection(1, "dog", 500, 0.9)]),
        (CAT, [detection(2, "cat", 0, 0.3)]),
        ([thing(1, "cat", 0, crowd=True)], [detection(1, "cat", 0, 0.9)]),
        ([thing(1, "cat", 0, crowd=True)], []),
    ],
    ids=["no detections", "wrong ones", "low scores", "only crowds", "only crowds, no detections"],
)
def test_a_run_without_anything_right_has_a_report(objects, detections):
    report = analyze(make_run(objects, detections))
    assert report.threshold == 0.5
    assert report.counts.found == 0
    assert report.box.ap == 0 or math.isnan(report.box.ap)
    assert math.isnan(report.box.ap) == all(x["iscrowd"] for x in objects)
    assert not any(x.box.ap < 0 for x in report.classes)
    assert len(report.findings) == 1
    assert (report.confusion[:-1, -1].sum()) == len([x for x in objects if not x["iscrowd"]])


def test_one_class_and_five_hundred():
    for number in (1, 500):
        ids = tuple(range(1, number + 1))
        truth = {
            "images": [{"id": 1}],
            "categories": [{"id": i, "name": str(i)} for i in ids],
            "annotations": [
                {"id": i, "image_id": 1, "category_id": i, "bbox": [20 * i, 0, 10, 10], "area": 100} for i in ids
            ],
        }
        found = [{"image_id": 1, "category_id": i, "bbox": [20 * i, 0, 10, 10], "score": 0.8} for i in ids]
        report = analyze(Run("", {}, "", {}, "many", truth, tuple(map(str, ids)), ids, found, {}))
        assert report.box.ap == pytest.approx(1)
        assert np.trace(report.confusion) == number
        assert report.worst == ()


def test_masks_have_their_own_ap():
    """The boxes are right, the masks are of the next object's pixels."""
    import pycocotools.mask as mask_util

    def rle(x):
        pixels = np.zeros((20, 60), dtype=np.uint8, order="F")
        pixels[:10, x : x + 10] = 1
        return mask_util.encode(pixels)

    objects = [{**thing(1, "cat", x), "segmentation": rle(x)} for x in (0, 20)]
    right = [{**detection(1, "cat", x, 0.9), "segmentation": rle(x)} for x in (0, 20)]
    wrong = [{**x, "segmentation": rle(40)} for x in right]
    assert analyze(make_run(objects, right)).mask.ap == pytest.approx(1)
    report = analyze(make_run(objects, wrong))
    assert report.mask.ap == 0
    assert report.classes[0].mask.ap == 0
    assert report.box.ap == pytest.approx(1)


def test_a_detection_of_an_unknown_image_or_category_is_an_error():
    for wrong in ({"image_id": 7}, {"category_id": 4}):
        with pytest.raises(InputError, match=r"which the ground truth does not list"):
            analyze(make_run(CAT, [detection(1, "cat", 0, 0.9) | wrong]))
