"""Pictures of detections."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detr.pictures import drawing
from detr.pictures.drawing import class_color, draw_objects, draw_prediction, draw_segments, label_text

GRAY = 90


def image(height=120, width=160):
    return np.full((height, width, 3), GRAY, dtype=np.uint8)


def near(pixel, color, share=1.0):
    """Whether a pixel is of a class's color, laid over gray by this share."""
    return np.abs(pixel.astype(float) - (np.array(color) * 255 * share + GRAY * (1 - share))).max() < 25


def test_boxes_have_the_color_of_their_class_and_the_rest_of_the_image_stays():
    boxes = np.array([[20.0, 40.0, 80.0, 90.0], [100.0, 40.0, 150.0, 90.0]])
    picture = draw_objects(image(), boxes, [1, 3], ["", ""])
    assert picture.shape == (120, 160, 3)
    assert near(picture[65, 20], class_color(1))
    assert near(picture[65, 100], class_color(3))
    assert (picture[65, 40:70] == GRAY).all()
    assert (picture[110:] == GRAY).all()


def test_other_colors_than_those_of_the_classes():
    boxes = np.array([[20.0, 40.0, 80.0, 90.0], [100.0, 40.0, 150.0, 90.0]])
    picture = draw_objects(image(), boxes, [1, 3], ["", ""], colors=[(1, 0, 0), (0, 0, 1)])
    assert near(picture[65, 20], (1, 0, 0))
    assert near(picture[65, 100], (0, 0, 1))
    assert (picture[:38] == GRAY).all()  # an object without a label has no dark patch in its place


def test_small_boxes_are_drawn_over_large_ones():
    boxes = np.array([[40.0, 40.0, 80.0, 80.0], [40.0, 40.0, 150.0, 110.0]])
    masks = torch.zeros(2, 120, 160, dtype=torch.bool)
    masks[0, 45:75, 45:75] = masks[1, 40:110, 40:150] = True
    for order in ([0, 1], [1, 0]):
        picture = draw_objects(image(), boxes[order], [(3, 1)[i] for i in order], ["", ""], masks[order])
        assert near(picture[60, 40], class_color(3))
        assert not near(picture[60, 60], class_color(1), 0.45)


def test_colors_of_a_hundred_classes_differ_and_neighbors_most():
    colors = np.array([class_color(i) for i in range(100)])
    distances = np.abs(colors[:, None] - colors[None]).max(-1) + np.eye(100)
    assert distances.min() > 0.01
    assert min(distances[i, i + 1] for i in range(99)) > 0.3


def test_masks_are_drawn_with_their_holes():
    mask = torch.zeros(1, 120, 160, dtype=torch.bool)
    mask[0, 40:100, 40:120] = True
    mask[0, 60:80, 60:100] = False
    picture = draw_objects(image(), np.array([[40.0, 40.0, 120.0, 100.0]]), [2], [""], mask)
    assert near(picture[50, 80], class_color(2), 0.45)
    assert (picture[65:75, 70:90] == GRAY).all()


@pytest.mark.parametrize(("size", "lowest", "highest"), [((96, 96), 8, 14), ((2000, 3000), 30, 80)])
def test_letters_fit_the_image(size, lowest, highest):
    with_label, without = (
        draw_objects(image(*size), np.array([[10.0, size[0] / 2, 60.0, size[0] - 10.0]]), [0], [text])
        for text in ("disc 98%", "")
    )
    rows = np.flatnonzero((with_label != without).any((1, 2)))
    assert lowest <= rows[-1] - rows[0] + 1 <= highest


def test_letters_shrink_in_a_crowd(monkeypatch):
    sizes = []
    monkeypatch.setattr(drawing, "place_labels", lambda s, *_: sizes.append(s) or [None] * len(s))
    for count in (2, 200):
        draw_objects(image(900, 900), np.tile([[10.0, 10.0, 50.0, 50.0]], (count, 1)), [0] * count, ["name"] * count)
    assert sizes[1][0, 1] < sizes[0][0, 1] - 2
    assert sizes[1][0, 1] >= drawing.MIN_TEXT_PIXELS


def test_instances_are_labeled_from_the_most_certain_on(monkeypatch):
    written = []
    monkeypatch.setattr(drawing, "_write_labels", lambda visualizer, labels, *args, **kwargs: written.extend(labels))
    instances = Instances(
        (120, 160),
        pred_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9], [20, 20, 40, 40]])),
        scores=torch.tensor([0.6, 0.987]),
        pred_classes=torch.tensor([1, 0]),
    )
    draw_prediction(image(), {"instances": instances}, ("cat", "dog"))
    assert written == ["cat 99%", "dog 60%"]
    assert label_text(5, None) == "class 5"


def test_a_name_with_dollars_is_no_formula():
    draw_objects(image(), np.array([[20.0, 40.0, 80.0, 90.0]]), [0], ["$x^{$ 98%"])


def test_segments_have_the_color_of_their_class_and_void_stays():
    ids = torch.zeros(120, 160, dtype=torch.int32)
    ids[:50], ids[60:100] = 1, 2
    segments = [{"id": 1, "category_id": 4, "score": 0.9}, {"id": 2, "category_id": 0}]
    picture = draw_segments(image(), ids, segments, ["a"] * 5)
    assert near(picture[10, 10], class_color(4), 0.5)
    assert near(picture[90, 10], class_color(0), 0.5)
    assert (picture[110:] == GRAY).all()


def test_nothing_is_drawn_for_no_objects():
    instances = Instances(
        (120, 160), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0).long()
    )
    assert (draw_prediction(image(), {"instances": instances}) == GRAY).all()
    assert (draw_prediction(image(), {"panoptic_seg": (torch.zeros(120, 160).int(), [])}) == GRAY).all()


def test_an_enlarged_picture():
    assert draw_objects(image(), np.array([[20.0, 40.0, 80.0, 90.0]]), [0], ["a"], scale=2).shape == (240, 320, 3)
