import torch

from detr.checkpoint.rows import PANOPTIC, THINGS, coco_rows, fit
from tests.parity.oracle import panoptic_kept_rows


def test_class_rows_are_the_categories_that_coco_uses():
    """80 ids between 1 and 90, then no-object; 12, 26, 29, 30 ... are COCO's gaps."""
    rows = coco_rows(THINGS).tolist()
    assert len(rows) == 81
    assert rows == sorted(rows)
    assert rows[:3] == [1, 2, 3]
    assert rows[-2:] == [90, 91]
    assert not {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(rows)


def test_panoptic_rows_are_things_then_stuff():
    rows = coco_rows(PANOPTIC)
    assert torch.equal(rows, panoptic_kept_rows())
    assert rows.tolist()[79:82] == [90, 92, 93]  # toothbrush, banner, blanket
    assert rows.tolist()[-2:] == [200, 250]  # rug, no-object


def head(rows, queries, value):
    return {
        "class_embed.weight": torch.full((rows, 4), value) + torch.arange(rows)[:, None],
        "class_embed.bias": torch.full((rows,), value) + torch.arange(rows),
        "query_embed.weight": torch.full((queries, 4), value) + torch.arange(queries)[:, None],
    }


def test_equal_sizes_are_unchanged():
    state = head(6, 10, 0.0)
    fitted, lines = fit(state, head(6, 10, 1000.0))
    assert lines == []
    assert all(torch.equal(fitted[key], state[key]) for key in state)


def test_other_classes_keep_no_object_alone():
    state, fresh = head(81, 10, 0.0), head(5, 10, 1000.0)
    fitted, lines = fit(state, fresh)
    assert fitted["class_embed.bias"].tolist() == [1000, 1001, 1002, 1003, 80]
    assert fitted["class_embed.weight"][:, 0].tolist() == [1000, 1001, 1002, 1003, 80]
    assert lines == ["class_embed: 81 rows in the weights, 5 wanted: no-object is kept, the others are re-initialized"]
    assert fresh["class_embed.bias"][-1] == 1004  # the model's own tensors are not written to


def test_boxes_and_panoptic_share_the_things():
    fitted, (line,) = fit(head(81, 1, 0.0), head(134, 1, 1000.0))
    assert fitted["class_embed.bias"].tolist() == [*range(80), *range(1080, 1133), 80]
    assert "no-object and the 80 things are kept" in line
    fitted, _ = fit(head(134, 1, 0.0), head(81, 1, 1000.0))
    assert fitted["class_embed.bias"].tolist() == [*range(80), 133]


def test_queries_are_kept_from_the_first():
    fewer, (line,) = fit(head(6, 10, 0.0), head(6, 4, 1000.0))
    assert fewer["query_embed.weight"][:, 0].tolist() == [0, 1, 2, 3]
    assert "10 queries in the weights, 4 wanted: the first 4 are kept" in line
    more, (line,) = fit(head(6, 2, 0.0), head(6, 4, 1000.0))
    assert more["query_embed.weight"][:, 0].tolist() == [0, 1, 1002, 1003]
    assert "2 more are initialized" in line


def test_another_width_is_left_alone():
    narrow = {key: value[..., :2] if value.dim() > 1 else value for key, value in head(5, 10, 1.0).items()}
    state = head(81, 20, 0.0)
    fitted, lines = fit(state, narrow)
    assert lines == []
    assert all(torch.equal(fitted[key], state[key]) for key in state)
