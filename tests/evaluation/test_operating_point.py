"""The score threshold with the best precision and recall, on detections counted by hand."""

import numpy as np
import pytest

from detr.evaluation.operating_point import ClassCounts, best_operating_point, best_threshold


def _truth(*objects, crowds=()):
    """objects: (image, category, x); each box is 10 x 10 pixels."""
    annotations = [
        {
            "id": i,
            "image_id": image,
            "category_id": category,
            "bbox": [x, 0, 10, 10],
            "area": 100,
            "iscrowd": int(i in crowds),
        }
        for i, (image, category, x) in enumerate(objects, start=1)
    ]
    return {
        "images": [{"id": 1, "width": 100, "height": 100}, {"id": 2, "width": 100, "height": 100}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
        "annotations": annotations,
    }


def _detection(image, category, x, score):
    return {"image_id": image, "category_id": category, "bbox": [x, 0, 10, 10], "score": score}


def test_the_threshold_with_the_most_f1():
    truth = _truth((1, 3, 0), (1, 3, 50), (2, 5, 0))
    detections = [
        _detection(1, 3, 0, 0.9),  # finds a cat
        _detection(2, 5, 1, 0.8),  # finds the dog, IoU 9/11
        _detection(2, 3, 50, 0.6),  # nothing is there
        _detection(1, 3, 52, 0.3),  # finds the other cat, IoU 8/12
        _detection(1, 5, 80, 0.2),
    ]
    # F1 after each: 2/4, 4/5, 4/6, 6/7, 6/8
    point = best_operating_point(truth, detections)
    assert point.threshold == 0.25
    assert point.classes == (ClassCounts("cat", 2, 3, 2), ClassCounts("dog", 1, 1, 1), ClassCounts("all", 3, 4, 3))
    assert point.classes[-1].precision == 0.75
    assert point.classes[-1].recall == 1


def test_a_detection_of_another_class_or_half_beside_finds_nothing():
    point = best_operating_point(
        _truth((1, 3, 0), (2, 3, 0)), [_detection(1, 3, 0, 0.9), _detection(2, 5, 0, 0.9), _detection(2, 3, 6, 0.9)]
    )
    assert point.classes[-1] == ClassCounts("all", 2, 3, 1)


def test_the_second_detection_of_an_object_is_false():
    point = best_operating_point(_truth((1, 3, 0)), [_detection(1, 3, 0, 0.9), _detection(1, 3, 0, 0.7)])
    assert point.threshold == 0.8
    assert point.classes[-1] == ClassCounts("all", 1, 1, 1)


def test_crowds_and_what_is_in_them_are_not_counted():
    truth = _truth((1, 3, 0), (1, 3, 50), crowds=(2,))
    point = best_operating_point(truth, [_detection(1, 3, 50, 0.9), _detection(1, 3, 0, 0.5)])
    assert point.classes[-1] == ClassCounts("all", 1, 1, 1)


def test_close_scores_are_told_apart():
    point = best_operating_point(_truth((1, 3, 0)), [_detection(1, 3, 0, 0.50002), _detection(1, 3, 50, 0.50001)])
    assert 0.50001 < point.threshold <= 0.50002


def test_a_threshold_has_two_digits_where_these_cost_next_to_nothing():
    score, found = np.array([*[0.9] * 999, 0.7532, 0.7531]), np.array([*[True] * 1000, False])
    assert best_threshold(score, found, 1000) == 0.75  # F1 is 2000/2001 instead of 1
    assert 0.7531 < best_threshold(score[-2:], found[-2:], 1) <= 0.7532  # it would be 2/3
    assert best_threshold(np.array([0.998]), found[:1], 1) == 0.5
    assert best_threshold(np.array([0.003, 0.001]), found[-2:], 1) == 0.002  # neither 0 nor all


def test_a_class_without_detections_has_no_precision():
    point = best_operating_point(_truth((1, 3, 0), (1, 5, 0)), [_detection(1, 3, 0, 0.9)])
    assert point.classes[1] == ClassCounts("dog", 1, 0, 0)
    assert point.classes[1].precision is None
    assert point.classes[1].recall == 0


@pytest.mark.parametrize("detections", [[], [_detection(1, 3, 80, 0.9)]])
def test_where_nothing_is_found_there_is_no_threshold(detections):
    assert best_operating_point(_truth((1, 3, 0)), detections) is None


def test_detections_of_equal_scores_are_above_a_threshold_together():
    truth = _truth((1, 3, 0), (1, 3, 50))
    # F1 is 2/3 with the first alone and 4/6 with all; it would be 1 after the second, which no threshold parts off.
    detections = [_detection(1, 3, 0, 0.9), *(_detection(1, 3, x, 0.5) for x in (50, 80, 90))]
    assert best_operating_point(truth, detections).threshold == 0.7
