"""What the report says in words: each finding where the numbers show it, and only there."""

import re

import pytest

from detr.report import analyze
from detr.report.training_findings import training_findings
from detr.report.wording import amount, joined
from tests.report.cases import as_metrics, detection, make_run, thing


def _texts(objects, detections, images=2):
    return [x.text for x in analyze(make_run(objects, detections, images=images)).findings]


def _matching(pattern, texts):
    return [text for text in texts if re.search(pattern, text)]


def _row(image, name, number, score=0.9, shift=0.0, called=None, size=10):
    """So many objects of a class in an image, each with a detection."""
    xs = [2 * size * i for i in range(number)]
    objects = [thing(image, name, x, size) for x in xs]
    return objects, [detection(image, called or name, x + shift, score, size) for x in xs]


def _together(*rows):
    """The objects and the detections of rows, an image each."""
    return [x for row in rows for x in row[0]], [x for row in rows for x in row[1]], len(rows)


GOOD = [_row(1, "cat", 40), _row(2, "dog", 40), _row(3, "cow", 40)]


def test_of_a_model_that_is_always_right_there_is_only_the_threshold_to_say():
    (text,) = _texts(*_together(*GOOD))
    assert text == (
        "Detections with a score of 0.45 or more are the best choice, by F1 (100.0 %): 100.0 % of them are right, and "
        "100.0 % of the objects are found."
    )


def test_classes_that_are_confused():
    run = make_run(*_together(*GOOD, _row(4, "cow", 20, called="dog")))
    texts = [x.text for x in analyze(run).findings]
    # dog: 40 right, then 20 wrong, which cost nothing; cow: 40 of 60 found, 67 of 101 recalls.
    assert texts[0] == (
        "Objects that are taken for another class cost most: AP50 is 88.8 %, and would be 11.2 points higher without "
        "them; at the threshold 0.45 they are 20 of 140 detections. Most often cow is taken for dog (20 times)."
    )
    (weak,) = (x for x in analyze(run).findings if "is weak" in x.text)
    assert weak.text == "cow is weak: AP 66.3 %, the mean is 88.8 %; 20 of its 60 objects are taken for dog."
    assert weak.action == "For cow, add examples that tell it from dog, and check how both are labeled."


def test_errors_of_low_scores():
    false = ([], [detection(1, "cow", 3000 + 20 * i, 0.3) for i in range(100)])
    texts = _texts(*_together(*GOOD, _row(4, "cow", 10, 0.2), false))
    assert texts[0].startswith("Detections where there is no object cost most: ")
    assert texts[0].endswith("; all of them have scores below the threshold 0.60.")


def test_objects_that_are_missed_and_overlap():
    objects, detections, _ = _together(*GOOD)
    for i in range(12):  # a dog behind a cow, found at a low score if at all
        objects += [thing(4, "cow", 100 * i, 40), thing(4, "dog", 100 * i + 20, 40)]
        detections += [detection(4, "cow", 100 * i, 0.9, 40)]
        detections += [detection(4, "dog", 100 * i + 20, 0.05, 40)] * (i < 8)
    detections += [detection(3, "dog", 3000 + 30 * i, 0.5) for i in range(30)]  # which leave these below the threshold
    texts = _texts(objects, detections, 4)
    assert _matching(
        r"^At the threshold 0.70, 12 of 144 objects are missed; 8 of these have a detection with a lower score. "
        r"100.0 % of them overlap another object, of all objects 16.7 %.$",
        texts,
    )
    assert _matching(r"^dog is weak: .*; 12 of its 52 objects have no detection\.$", texts)


def test_a_weak_size():
    large = _row(4, "cat", 20, size=200, shift=50.0)  # IoU 150/250
    texts = _texts(*_together(*GOOD, large))
    assert _matching(
        r"^Large objects \(above 96 x 96 pixels\) are found worst: AP 30.0 % of 20 objects, and 100", texts
    )
    assert _matching("^Small objects", _texts(*_together(_row(1, "cat", 20, shift=2.0), _row(2, "cat", 20, size=50))))
    assert not _matching("found worst", _texts(*_together(*GOOD, _row(4, "cat", 9, size=200, shift=50.0))))


def test_loose_boxes():
    loose = [_row(i, name, 40, shift=3.0) for i, name in enumerate(("cat", "dog", "cow"), start=1)]  # IoU 7/13
    assert _matching(
        r"^Boxes are loose: AP is 100.0 % at IoU 0.5, but 0.0 % at IoU 0.75\.$", _texts(*_together(*loose))
    )


def test_duplicates_and_classes_with_false_detections():
    objects, detections, images = _together(*GOOD[:2], _row(3, "cow", 20), _row(4, "cow", 20, 0.5))
    detections += [detection(3, "cow", 20 * i, 0.8) for i in range(20)]
    texts = _texts(objects, detections, images)
    assert texts[0].startswith("Second detections of the same object cost most")
    objects, detections, images = _together(*GOOD)
    detections += [detection(3, "cow", 5000 + 20 * i, 0.95) for i in range(30)]
    texts = _texts(objects, detections, images)
    assert _matching(r"^cow is weak: .*; 30 of its 70 detections are wrong, most of them by background\.$", texts)


def test_fewer_queries_than_objects():
    objects, detections, _ = _together(_row(1, "cat", 20), _row(2, "dog", 10))
    few = [*detections[:10], *detections[20:]]
    assert _matching("^An image has 20 objects, and the model gives 10 detections", _texts(objects, few))
    assert not _matching("gives", _texts(objects, detections))


def test_classes_with_a_threshold_of_their_own():
    low = _row(3, "cow", 20, 0.2)
    false = ([], [detection(1, "cat", 3000 + 20 * i, 0.3) for i in range(40)])
    texts = _texts(*_together(*GOOD[:2], low, false))
    assert _matching(r"^Some classes gain from a threshold of their own: cow at 0.10 \(100.0 points of F1\)\.$", texts)


def test_classes_without_objects_and_with_few():
    texts = _texts(*_together(_row(1, "cat", 40), _row(2, "dog", 3)))
    assert "animals has no object of cow, so nothing is known of how they are found." in texts
    assert "animals has fewer than 10 objects of dog, whose AP is uncertain." in texts


def test_a_run_without_anything_right():
    cat = [thing(1, "cat", 0)]
    assert _texts(cat, []) == ["The model detects nothing in the 2 images, at any score."]
    assert _texts(cat, [detection(1, "dog", 0, 0.9)]) == ["None of the 1 detection finds an object of its class."]
    assert _texts([thing(1, "cat", 0, crowd=True)], []) == ["animals has no object to find, only crowds."]


def _rows(**columns):
    """Rows at iterations 19, 39, ...; None leaves a value out."""
    length = max(map(len, columns.values()))
    return [
        {"iteration": 20 * i + 19}
        | {key.replace("_AP", "/AP"): x[i] for key, x in columns.items() if i < len(x) and x[i] is not None}
        for i in range(length)
    ]


FALLING = [10.0, 8.0, 6.0, 5.0, 4.0]


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        (
            _rows(total_loss=FALLING, val_loss=[9.0, 7.0, 6.5, 7.0, 7.5]),
            r"overfits: the validation loss was lowest at iteration 59 \(6.50\) and is 7.50 at the end, while the "
            r"training loss fell from 6.00 to 4.00",
        ),
        (_rows(total_loss=FALLING, val_loss=[9.0, 8.0, 7.0, 6.0, 5.0]), None),
        (_rows(total_loss=[5.0, 5.0, 5.0, 6.0, 7.0], val_loss=[9.0, 7.0, 6.5, 7.0, 7.5]), None),  # diverges
        (_rows(total_loss=FALLING, val_loss=[9.0, 7.0, 6.5, 6.55, 6.6]), None),
        (
            _rows(bbox_AP=[None, 40.0, None, 42.0]),
            r"still rising at the end: from 40.0 % at iteration 39 to 42.0 % at 79",
        ),
        (_rows(bbox_AP=[40.0, 40.5]), None),
        (_rows(bbox_AP=[40.0, 44.0, 42.0]), r"AP was best at iteration 39, 44.0 %, and is 42.0 % at the end"),
        (_rows(bbox_AP=[40.0]), None),
        (_rows(lr=[0.001] * 12), r"never lowered: it is 0.001 at the end, at iteration 239"),
        (_rows(lr=[0.001] * 10 + [0.0001] * 2), None),
        (_rows(lr=[0.0001, 0.001]), None),
        ([], None),
    ],
)
def test_training(rows, pattern):
    texts = [x.text for x in training_findings(as_metrics(rows), "animals")]
    assert len(texts) == (pattern is not None)
    assert pattern is None or re.search(pattern, texts[0])


def test_ap_of_one_of_several_sets_and_of_a_run():
    rows = [{"iteration": i, "animals/bbox/AP": 10.0 * i, "plants/bbox/AP": 5.0} for i in (1, 2)]
    assert "from 10.0 % at iteration 1 to 20.0 % at 2" in training_findings(as_metrics(rows), "animals")[0].text
    assert training_findings(as_metrics(rows), "plants") == []
    objects, detections, images = _together(*GOOD)
    report = analyze(make_run(objects, detections, images, metrics=as_metrics(rows)))
    assert "rising" in report.findings[-1].text


def test_words():
    assert [amount(1, "box"), amount(2, "box"), amount(0, "object")] == ["1 box", "2 boxes", "0 objects"]
    assert [joined([]), joined("a"), joined("ab"), joined("abc")] == ["", "a", "a and b", "a, b and c"]
    assert joined("abcdefg") == "a, b, c, d, e and 2 more"
