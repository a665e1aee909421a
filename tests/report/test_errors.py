"""Kinds of errors, and what they cost: counted by hand, and by hotcoco's implementation of TIDE."""

import math

import hotcoco
import numpy as np
import pytest

from detr.evaluation.matching import match
from detr.report.errors import KINDS, ap50_gains, classify, missed
from detr.report.results import ERRORS
from tests.evaluation.random_coco import random_case
from tests.report.cases import content, detection, thing


def _kinds(objects, detections):
    """The kinds of the detections, in the order in which they are given."""
    matches = match(content(*objects), detections)
    kinds = classify(matches)
    return [KINDS[kinds.kind[matches.index.tolist().index(i)]] for i in range(len(detections))]


@pytest.mark.parametrize(
    ("name", "x", "kind"),
    [
        ("cat", 2, "correct"),  # IoU 8/12
        ("dog", 2, "classification"),
        ("cat", 5, "localization"),  # IoU 5/15
        ("dog", 5, "both"),
        ("cat", 9, "background"),  # IoU 1/19
        ("dog", 9, "background"),
    ],
)
def test_the_kind_of_one_detection_beside_one_cat(name, x, kind):
    assert _kinds([thing(1, "cat", 0)], [detection(1, name, x, 0.5)]) == [kind]


def test_the_second_detection_of_an_object_is_a_duplicate_whichever_is_nearer():
    found = [detection(1, "cat", 0, 0.5), detection(1, "cat", 1, 0.9)]
    assert _kinds([thing(1, "cat", 0)], found) == ["duplicate", "correct"]


def test_a_crowd_makes_detections_of_its_class_neither_right_nor_wrong():
    found = [detection(1, "cat", 50, 0.9), detection(1, "cat", 52, 0.8), detection(1, "dog", 50, 0.7)]
    crowd = thing(1, "cat", 0, size=100, crowd=True)
    assert _kinds([crowd, thing(2, "cat", 0)], found) == ["ignored", "ignored", "background"]


def test_another_image_s_object_does_not_count():
    assert _kinds([thing(2, "cat", 0)], [detection(1, "cat", 0, 0.9)]) == ["background"]


def test_an_object_is_missed_unless_found_or_nearly_found_above_the_threshold():
    objects = [thing(1, "cat", 0), thing(1, "cat", 100), thing(1, "cat", 200), thing(1, "cat", 300)]
    found = [
        detection(1, "cat", 0, 0.9),
        detection(1, "cat", 105, 0.7),  # beside it
        detection(1, "dog", 200, 0.5),  # wrong class
        detection(1, "dog", 305, 0.9),  # both, which covers nothing
    ]
    matches = match(content(*objects), found)
    kinds = classify(matches)
    assert missed(matches, kinds, 0.0).tolist() == [False, False, False, True]
    assert missed(matches, kinds, 0.6).tolist() == [False, False, True, True]
    assert missed(matches, kinds, 0.8).tolist() == [False, True, True, True]


def _gains(objects, detections):
    matches = match(content(*objects), detections)
    return ap50_gains(matches, classify(matches), 3)


def test_what_each_error_costs():
    """Two cats, one found: precision is 1 up to recall 0.5, so AP50 is 51/101."""
    objects, right = [thing(1, "cat", 0), thing(1, "cat", 100)], detection(1, "cat", 0, 0.9)
    nothing = dict.fromkeys(ERRORS, 0.0)

    def gains(*more):
        return _gains(objects, [right, *more])

    half = 50 / 101
    assert gains() == pytest.approx(nothing | {"missed": half})
    assert gains(detection(1, "cat", 105, 0.5)) == pytest.approx(nothing | {"localization": half})
    assert gains(detection(1, "dog", 100, 0.5)) == pytest.approx(nothing | {"classification": half})
    # A false one before the right one: precision 1/2 up to recall 0.5. Without it, and with it mended:
    first = 0.5 * 51 / 101
    for wrong, kind in (((1, "cat", 500), "background"), ((1, "cat", 2), "duplicate")):
        found = [detection(*wrong, 0.95), right] if kind == "background" else [right, detection(*wrong, 0.8)]
        found += [detection(1, "cat", 100, 0.7)] * (kind == "duplicate")
        result = _gains(objects, found)
        if kind == "background":
            assert result == pytest.approx(nothing | {kind: first, "missed": 0.5 - first})
        else:  # precision 1 up to recall 0.5, then 2/3
            assert result == pytest.approx(nothing | {kind: half / 3})


def test_an_object_is_given_once_to_the_error_with_the_highest_score():
    """The dog on the cat becomes the cat; the other one, of a lower score, is removed, not another right one."""
    found = [detection(1, "dog", 0, 0.9), detection(1, "cow", 0, 0.8)]
    assert _gains([thing(1, "cat", 0)], found)["classification"] == pytest.approx(1)


def test_an_error_at_an_object_that_is_found_is_removed():
    """The dog on the cat comes before a right dog, whose precision is 1/2; removed, it does no harm."""
    objects = [thing(1, "cat", 0), thing(1, "dog", 100)]
    found = [detection(1, "cat", 0, 0.9), detection(1, "dog", 0, 0.8), detection(1, "dog", 100, 0.7)]
    assert _gains(objects, found)["classification"] == pytest.approx((1 + 1) / 2 - (1 + 0.5) / 2)


def test_a_class_of_which_all_objects_are_missed_is_not_counted_when_that_is_mended():
    objects = [thing(1, "cat", 0), thing(1, "dog", 100)]
    assert _gains(objects, [detection(1, "cat", 0, 0.9)])["missed"] == pytest.approx(1 - 1 / 2)


def test_without_objects_nothing_can_be_gained():
    crowd = thing(1, "cat", 0, crowd=True)
    assert all(map(math.isnan, _gains([crowd], [detection(1, "dog", 50, 0.9)]).values()))


@pytest.mark.parametrize("seed", range(3))
def test_counts_and_gains_are_those_of_another_implementation_of_tide(seed):
    truth, results = random_case(seed)
    scores = np.random.default_rng(seed).permutation(len(results)) / len(results)  # no two are equal
    results = [{**x, "score": float(score)} for x, score in zip(results, scores, strict=True)]
    # Crowds are no objects here, and objects that errors may be at there.
    truth["annotations"] = [x for x in truth["annotations"] if not x["iscrowd"]]
    theirs = hotcoco.COCOeval(ground := hotcoco.COCO(truth), ground.loadRes(results), "bbox")
    theirs.evaluate()
    theirs = theirs.tide_errors()
    matches = match(truth, results)
    kinds = classify(matches)
    counts = {kind: int(kinds.are(kind).sum()) for kind in ERRORS} | {"missed": int(missed(matches, kinds, 0).sum())}
    names = dict(zip(ERRORS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
    assert counts == {kind: theirs["counts"][name] for kind, name in names.items()}
    assert min(counts.values()) > 10
    gains = ap50_gains(matches, kinds, len(truth["categories"]))
    assert gains == pytest.approx({kind: theirs["delta_ap"][name] for kind, name in names.items()}, abs=1e-9)
