"""The sheet of where a model looks."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from detr.modeling.attention_maps import Attention
from detr.pictures import attention as sheets
from detr.pictures.attention import attention_sheet, heat


def make_attention(size, objects, points=2, cells=(6, 8), encoder_layers=1):
    """Query q looks at cell q alone; the points, evenly everywhere. size: (height, width)"""
    h, w = cells
    decoder = torch.eye(h * w).view(1, 1, h * w, h, w)
    boxes = torch.tensor([[0.2, 0.2, 0.6, 0.7]]).repeat(objects, 1) * torch.tensor(size[::-1]).repeat(2)
    instances = Instances(
        size,
        pred_boxes=Boxes(boxes),
        scores=torch.linspace(0.99, 0.5, objects),
        pred_classes=torch.arange(objects) % 3,
        pred_queries=torch.arange(objects) + 5,
    )
    return Attention(
        output={},
        objects=instances,
        decoder=decoder,
        encoder=torch.full((encoder_layers, 1, points, h, w), 1 / (h * w)),
        points=torch.tensor([[1.0, 2.0], [30.0, 20.0]])[:points],
        extent=(size[1], size[0]),
    )


def test_heat_is_where_the_weight_is():
    """A single cell of 4 x 5 of 10 pixels each; the map covers 50 x 40 pixels of an image of 48 x 36."""
    weights = np.zeros((4, 5))
    weights[2, 3] = 0.4
    image = np.full((36, 48, 3), 100, dtype=np.uint8)
    drawn = heat(image, weights, (50.0, 40.0)).astype(int)
    assert drawn.shape == image.shape
    brightest = np.unravel_index(drawn.sum(-1).argmax(), (36, 48))
    assert abs(brightest[0] - 24.5) <= 1
    assert abs(brightest[1] - 34.5) <= 1
    assert drawn[24, 34].sum() > 2.5 * drawn[3, 3].sum()
    assert np.ptp(drawn[3, 3]) == 0  # gray where nobody looks
    assert np.array_equal(heat(image, np.zeros((4, 5)), (50.0, 40.0)), heat(image, np.zeros((4, 5)), (48.0, 36.0)))


def titles_and_panels(monkeypatch):
    """What is drawn, panel by panel."""
    drawn = []
    original = sheets._panel

    def panel(figure, place, picture, image, title):
        axes = original(figure, place, picture, image, title)
        drawn.append((title, axes))
        return axes

    monkeypatch.setattr(sheets, "_panel", panel)
    return drawn


def test_the_best_objects_have_panels_and_the_sheet_tells_how_many_there_are(monkeypatch):
    drawn = titles_and_panels(monkeypatch)
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    attention_sheet(image, make_attention((60, 80), 15), ["a", "b", "c"])
    titles = [title for title, _ in drawn]
    assert titles[0] == "the 12 best of 15 objects"
    assert titles[1] == "1  a 99%\nquery 5, peak 100.0%"
    assert titles[12].endswith("query 16, peak 100.0%")
    assert titles[13:] == ["A  at 1, 2\npeak 2.1%", "B  at 30, 20\npeak 2.1%"]


@pytest.mark.parametrize(("size", "objects"), [((60, 80), 7), ((400, 40), 3), ((40, 400), 3), ((3, 2), 0)], ids=str)
def test_panels_and_titles_do_not_overlap(size, objects, monkeypatch):
    drawn = titles_and_panels(monkeypatch)
    names = ["W" * 60, "$x$ and $y", "c"]
    sheet = attention_sheet(np.zeros((*size, 3), dtype=np.uint8), make_attention(size, objects), names)
    assert len(drawn) == 1 + objects + 2
    height, width = sheet.shape[:2]
    assert 0.2 < width / height < 8
    assert max(sheet.shape) < 3000
    areas = []
    for _, axes in drawn:
        window = axes.get_window_extent()
        title = axes._left_title.get_window_extent()
        assert title.width <= max(window.width, 145)
        areas.append((min(window.x0, title.x0), window.y0, max(window.x1, title.x1), title.y1))
    for i, (x0, y0, x1, y1) in enumerate(areas):
        assert x0 >= 0
        assert y0 >= 0
        assert x1 <= width
        assert y1 <= height
        for a0, b0, a1, b1 in areas[:i]:
            assert x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0


def test_without_encoder_maps_there_are_no_points(monkeypatch):
    drawn = titles_and_panels(monkeypatch)
    attention_sheet(np.zeros((60, 80, 3), dtype=np.uint8), make_attention((60, 80), 1, encoder_layers=0))
    assert [title for title, _ in drawn] == ["1 object", "1  class 0 99%\nquery 5, peak 100.0%"]


def test_the_panel_of_a_query_shows_its_own_map():
    """Query 5 looks at cell (0, 5) of 6 x 8, query 6 at (0, 6): the sheet is brightest at different places."""
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    one, two = (make_attention((60, 80), 1, points=0) for _ in range(2))
    two.objects.pred_queries += 8  # the row below
    first, second = (attention_sheet(image, x).astype(int) for x in (one, two))
    rows = [np.abs(a - b).sum((1, 2)) for a, b in ((first, second),)]
    assert rows[0].max() > 0
    gained = np.argwhere((first - second).sum(-1) > 300)[:, 0].mean()
    lost = np.argwhere((second - first).sum(-1) > 300)[:, 0].mean()
    panel = sheets.PANEL / (80 / 60) ** 0.5 * sheets.DPI
    assert lost - gained == pytest.approx(panel / 6, abs=6)  # a cell's height
