"""The numbers of the health hook, from matchings that are written by hand."""

import numpy as np
import pytest

from detr.engine import matching_statistics
from detr.engine.matching_statistics import DEAD, EPOCHS, IOU, LAYERS, NO_OBJECT, MatchingStatistics, Step

NONE = 3  # of 3 classes


def make_step(best, queries, labels, images=None, centers=None, names=None, iou=0.5):
    """queries: those of the objects, a list for each layer; images: of the objects, all of the first by default"""
    layers, objects = len(queries), len(labels)
    images = np.zeros(objects, dtype=int) if images is None else np.array(images)
    return Step(
        best=np.array(best),
        layer=np.repeat(np.arange(layers), objects),
        image=np.tile(images, layers),
        query=np.array(queries, dtype=int).flatten(),
        target=np.tile(np.arange(objects), layers),
        iou=np.full(objects, iou),
        labels=np.array(labels, dtype=int),
        centers=np.array([[0.1 + 0.2 * i, 0.5] for i in range(objects)] if centers is None else centers).reshape(-1, 2),
        names=[f"{i}.jpg" for i in range(len(best))] if names is None else names,
    )


def test_a_step_in_numbers():
    statistics = MatchingStatistics(num_queries=4, num_classes=3)
    best = [[0, NONE, 1, NONE], [NONE, NONE, 2, NONE]]  # 3 of 8 predict an object
    step = make_step(best, queries=[[1, 0, 2], [0, 0, 2], [0, 2, 2]], labels=[0, 1, 2], images=[0, 0, 1])
    metrics = statistics.add(step)
    # Layers 0 and 1 agree on two objects of three, 1 and 2 too.
    assert metrics == pytest.approx({NO_OBJECT: 5 / 8, IOU: 0.5, LAYERS: 4 / 6})
    sums = statistics.take_sums()
    assert (sums.objects, sums.most_objects, sums.predicted, sums.matched) == (3, 2, 3, 3)
    assert (sums.named, sums.right) == (3, 3)  # query 0 of image 0, 2 of 0, 2 of 1
    assert sums.iou == pytest.approx(1.5)
    assert sums.by_query.tolist() == [1, 0, 2, 0]
    assert sums.by_class.tolist() == [1, 1, 1]
    assert statistics.take_sums().matched == 0


def test_an_object_without_a_query_is_in_no_comparison():
    step = make_step([[NONE, NONE]], queries=[[0, 1], [1, 0]], labels=[0, 0, 0][:2])
    three = Step(**{**vars(step), "labels": np.array([0, 0, 0]), "centers": np.zeros((3, 2))})  # two queries only
    assert MatchingStatistics(2, 3).add(three)[LAYERS] == 0


def test_a_batch_without_objects():
    statistics = MatchingStatistics(2, 3)
    assert statistics.add(make_step([[NONE, NONE]], queries=[[], []], labels=[])) == {NO_OBJECT: 1.0}
    assert statistics.take_sums().matched == 0


def test_one_layer_has_none_before_it():
    assert LAYERS not in MatchingStatistics(2, 3).add(make_step([[0, 1]], queries=[[0, 1]], labels=[0, 1]))


def test_objects_are_known_again_by_image_class_and_place():
    statistics = MatchingStatistics(4, 3)
    best = [[NONE] * 4]
    assert EPOCHS not in statistics.add(make_step(best, [[0, 1]], [0, 1]))
    assert statistics.add(make_step(best, [[0, 2]], [0, 1]))[EPOCHS] == 0.5
    assert statistics.add(make_step(best, [[0, 2]], [0, 1]))[EPOCHS] == 1  # compared with the last time, not the first
    flipped = [[0.9, 0.5], [0.7, 0.5]]
    assert EPOCHS not in statistics.add(make_step(best, [[3, 3]], [0, 1], centers=flipped))
    assert statistics.add(make_step(best, [[0, 3]], [0, 2]))[EPOCHS] == 1  # the second has another class
    assert EPOCHS not in statistics.add(make_step(best, [[3, 3]], [0, 1], names=["other.jpg"]))
    assert EPOCHS not in statistics.add(make_step(best, [[3, 3]], [0, 1], names=[None]))
    sums = statistics.take_sums()
    assert (sums.compared, sums.same) == (5, 4)


def test_not_more_objects_are_remembered_than_the_limit(monkeypatch):
    monkeypatch.setattr(matching_statistics, "MAX_REMEMBERED", 3)
    statistics = MatchingStatistics(4, 3)
    for name in "abcd":
        statistics.add(make_step([[NONE] * 4], [[0, 1]], [0, 1], names=[name]))
    assert len(statistics.remembered) == 3
    assert statistics.add(make_step([[NONE] * 4], [[2, 2]], [0, 1], names=["a"]))[EPOCHS] == 0  # known ones go on
    assert statistics.add(make_step([[NONE] * 4], [[2, 2]], [0, 1], names=["a"]))[EPOCHS] == 1


def test_a_query_is_dead_after_a_window_without_a_match_or_an_object(monkeypatch):
    monkeypatch.setattr(matching_statistics, "WINDOW", 4)
    statistics = MatchingStatistics(4, 3)
    idle = [[NONE] * 4] * 2

    def shares(step, times=1):
        return [statistics.add(step).get(DEAD) for _ in range(times)]

    matched = make_step(idle, [[0], [1]], [0])  # by the last layer, query 1
    assert shares(matched) == [None]  # 2 images
    assert shares(make_step([[NONE, NONE, 2, NONE], [NONE] * 4], [[]], [])) == [0.5]  # 4 images: 0 and 3 are dead
    assert shares(make_step(idle, [[]], []), times=3) == [0.75, 1, 1]
    assert shares(matched) == [0.75]
