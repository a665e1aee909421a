"""Which rows of the weights are those of a model's classes, from two lists of names."""

import pytest
import torch

from detr.checkpoint.class_rows import LABEL_KEY, coco_names, match, plan_rows, take_rows


def test_cocos_names_are_in_detectron2s_order():
    assert coco_names(80)[:2] == ("person", "bicycle")
    assert coco_names(80)[-1] == "toothbrush"
    assert coco_names(133)[:80] == coco_names(80)
    assert coco_names(133)[80] == "banner"
    assert coco_names(133)[-1] == "rug-merged"
    assert coco_names(81) is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (["a", "b", "c"], ["c", "d", "a"], [2, None, 0]),
        (["traffic light", "T-shirt"], ["TShirt", "Traffic_Light"], [1, 0]),
        (["Car", "car"], ["car", "CAR"], [1, 0]),  # what is equal to the letter goes first
        (["car", "Car"], ["car", "Car"], [0, 1]),
        (["x", "a", "a"], ["a", "a", "a"], [None, 1, 2]),  # no row is taken twice, and each stays where it can
        (["a"], [], []),
    ],
)
def test_names_are_matched(old, new, expected):
    assert match(old, new) == expected


def test_the_same_classes_need_no_plan():
    assert plan_rows(["a b", "c"], ["A_B", "c"]) is None


def test_another_number_of_classes_keeps_those_of_the_same_name():
    plan = plan_rows(["a", "b", "c"], ["c", "d"])
    assert plan.rows == (2, None)
    assert not plan.complete
    assert plan.line == (
        "class_embed: 4 rows in the weights, 3 wanted: kept are no-object and 1 class of the same name (c); "
        "re-initialized: 1 class (d)"
    )
    assert plan.warning == ""
    subset = plan_rows(["a", "b", "c"], ["c", "a"])
    assert subset.rows == (2, 0)
    assert subset.complete
    assert subset.line.endswith("(c, a)")


def test_another_order_moves_rows():
    plan = plan_rows(["a", "b", "c"], ["c", "b", "a"])
    assert plan.rows == (2, 1, 0)
    assert plan.complete
    assert plan.line == ""
    assert plan.warning.endswith("moved to the classes of the same name: c from 2 to 0, a from 0 to 2")


def test_another_name_at_a_free_place_keeps_its_row():
    plan = plan_rows(["a", "b", "c"], ["a", "x", "c"])
    assert plan.rows == (0, 1, 2)
    assert "the weights do not have 1 class by name" in plan.warning
    assert "x has that of b; that suits a fine-tuning" in plan.warning


def test_another_name_at_a_taken_place_is_reinitialized():
    plan = plan_rows(["a", "b", "c"], ["x", "y", "a"])  # the row of place 0 goes to 2; that of 1 is free
    assert plan.rows == (None, 1, 0)
    assert plan.line == "class_embed: re-initialized: 1 class of 3 (x)"
    assert "a from 0 to 2" in plan.warning
    assert "y has that of b" in plan.warning


def test_long_lists_are_cut():
    names = [f"class {i}" for i in range(9)]
    assert plan_rows(["other"], names).line.endswith("(class 0, class 1, class 2, class 3, class 4 and 4 more)")


def head(num_classes, start, prefix=""):
    rows = torch.arange(num_classes + 1.0) + start
    return {f"{prefix}class_embed.weight": rows[:, None].expand(-1, 3).clone(), f"{prefix}class_embed.bias": rows}


def test_rows_of_heads_and_of_denoising_labels():
    state = {**head(3, 0), **head(3, 10, "teacher."), **head(7, 20, "other."), LABEL_KEY: torch.arange(3.0)[:, None]}
    initial = {**head(2, 100), **head(2, 110, "teacher."), **head(7, 0, "other."), LABEL_KEY: torch.full((2, 1), 50.0)}
    before = {key: value.clone() for key, value in (*state.items(),)}
    taken = take_rows(state, initial, (2, None), 3)
    assert taken["class_embed.bias"].tolist() == [2, 101, 3]  # no-object last
    assert taken["class_embed.weight"][:, 0].tolist() == [2, 101, 3]
    assert taken["teacher.class_embed.bias"].tolist() == [12, 111, 13]
    assert taken["other.class_embed.bias"] is state["other.class_embed.bias"]
    assert taken[LABEL_KEY].tolist() == [[2], [50]]
    assert all(torch.equal(value, before[key]) for key, value in state.items())


def test_another_width_is_left_alone():
    narrow = {key: value[..., :2] if value.dim() > 1 else value for key, value in head(2, 100).items()}
    state = head(3, 0)
    taken = take_rows(state, narrow, (2, 1), 3)
    assert taken["class_embed.weight"] is state["class_embed.weight"]
