"""Labels: where they are put."""

import numpy as np
import pytest

from detr.pictures.labels import gap, place_labels

WIDTH, HEIGHT = 640, 480


def crowd(count, seed=0):
    """Sizes and boxes of many objects, some of them beyond the image's edges."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform([-20, -20], [WIDTH, HEIGHT], (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 120, (count, 2))], axis=1)
    return np.stack([rng.uniform(20, 90, count), np.full(count, 14.0)], axis=1), boxes


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("count", [1, 12, 120])
def test_labels_neither_overlap_nor_leave_the_image(count, centered):
    sizes, boxes = crowd(count)
    positions = place_labels(sizes, boxes, (WIDTH, HEIGHT), centered)
    placed = [(*p, p[0] + w, p[1] + h) for p, (w, h) in zip(positions, sizes, strict=True) if p is not None]
    assert len(placed) > count * 0.6
    for i, (x0, y0, x1, y1) in enumerate(placed):
        assert min(x0, y0) >= 0
        assert x1 <= WIDTH + 1e-6
        assert y1 <= HEIGHT + 1e-6
        for a0, b0, a1, b1 in placed[:i]:
            assert min(x1, a1) - max(x0, a0) <= 1e-6 or min(y1, b1) - max(y0, b0) <= 1e-6


def test_a_label_stands_above_its_box_and_inside_where_there_is_no_room_above():
    sizes = np.array([[40, 10]])
    assert place_labels(sizes, np.array([[100, 50, 200, 90]]), (WIDTH, HEIGHT)) == [(100, 40)]
    assert place_labels(sizes, np.array([[100, 0, 200, 90]]), (WIDTH, HEIGHT)) == [(100, 0)]
    assert place_labels(sizes, np.array([[100, 50, 200, 90]]), (WIDTH, HEIGHT), centered=True) == [(130, 65)]


def test_a_label_keeps_off_another_object():
    boxes = np.array([[100, 50, 200, 90], [100, 35, 140, 49]])
    first, _ = place_labels(np.array([[40, 10], [40, 10]]), boxes, (WIDTH, HEIGHT))
    assert gap(first, (40, 10), boxes[1]) > 0 or first[1] >= 49


def test_the_first_of_two_equal_objects_has_the_best_place_and_a_third_may_have_none():
    boxes = np.array([[0, 0, 60, 20]] * 3)
    assert place_labels(np.array([[60, 10]] * 3), boxes, (60, 20)) == [(0, 0), (0, 10), None]


def test_a_label_larger_than_the_image_is_left_out():
    assert place_labels(np.array([[700, 10]]), np.array([[0, 0, 9, 9]]), (WIDTH, HEIGHT)) == [None]


def test_the_gap_between_a_label_and_its_box():
    assert gap((10, 10), (5, 5), (15, 0, 30, 30)) == 0
    assert gap((10, 10), (5, 5), (18, 19, 30, 30)) == 5  # 3 to the right, 4 below
