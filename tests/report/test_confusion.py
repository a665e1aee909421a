"""The confusion matrix, counted by hand: rows are true classes, columns predicted ones, the last is the background."""

from detr.evaluation.matching import match
from detr.report.confusion import confusion_matrix
from tests.report.cases import content, detection, thing


def _matrix(objects, detections, threshold=0.5):
    return confusion_matrix(match(content(*objects), detections), threshold, 3).tolist()


def test_right_confused_missed_and_false():
    objects = [thing(1, "cat", 0), thing(1, "cat", 100), thing(1, "dog", 200), thing(2, "cow", 0)]
    found = [
        detection(1, "cat", 1, 0.9),
        detection(1, "dog", 100, 0.8),
        detection(1, "cow", 300, 0.7),
        detection(2, "cow", 0, 0.4),  # below the threshold
    ]
    assert _matrix(objects, found) == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]
    assert _matrix(objects, found, 0.3)[2] == [0, 0, 1, 0]


def test_the_highest_iou_comes_first_whatever_class_and_score():
    """The dog's box is nearer than the cat's, though its score is lower; the cat is left without an object."""
    found = [detection(1, "cat", 2, 0.9), detection(1, "dog", 1, 0.6)]
    assert _matrix([thing(1, "cat", 0)], found) == [[0, 1, 0, 0], [0] * 4, [0] * 4, [1, 0, 0, 0]]


def test_what_is_left_after_the_best_pair_is_paired_too():
    """Both dogs are nearest to the first cat (IoU 10/10, 9/11); the second one then gets the other cat (IoU 7/13)."""
    objects = [thing(1, "cat", 0), thing(1, "cat", 4)]
    found = [detection(1, "dog", 0, 0.9), detection(1, "dog", 1, 0.8)]
    assert _matrix(objects, found)[0] == [0, 2, 0, 0]


def test_what_lies_in_a_crowd_of_its_class_is_not_counted():
    objects = [thing(1, "cat", 0, size=100, crowd=True), thing(2, "dog", 0)]
    found = [detection(1, "cat", 50, 0.9), detection(1, "dog", 50, 0.9)]
    assert _matrix(objects, found) == [[0] * 4, [0, 0, 0, 1], [0] * 4, [0, 1, 0, 0]]


def test_without_detections_all_are_missed():
    assert _matrix([thing(1, "cat", 0)], []) == [[0, 0, 0, 1], [0] * 4, [0] * 4, [0] * 4]
