"""Small maps worked out by hand; the parity tests hold large ones to the original's."""

import json

import pytest
import torch
from torch import Tensor

from detr.config_checks import STUFF_MERGES
from detr.modeling.panoptic import _assign, _assign_on_cpu, panoptic_queries, panoptic_segmentation

CUP, DOG, SKY, SEA = range(4)
IS_THING = torch.tensor([True, True, False, False])
both_merges = pytest.mark.parametrize("stuff_merge", STUFF_MERGES)


def drawn(*queries: str) -> Tensor:
    """(R, h, w) from a drawing of each query: rows apart by spaces, a digit is a logit."""
    return torch.tensor([[[float(logit) for logit in row] for row in query.split()] for query in queries])


def segment(logits, labels, *, size=None, padded_size=None, stuff_merge="original", min_area=4, is_thing=IS_THING):
    """The map as lists and the segments; one pixel of the input a logit, unless sizes are given."""
    image_size = tuple(logits.shape[1:])
    found, segments = panoptic_segmentation(
        logits,
        torch.tensor(labels, dtype=torch.int64),
        0.9 + torch.arange(len(labels)) / 100,
        padded_size=padded_size or image_size,
        image_size=image_size,
        size=size or image_size,
        is_thing=is_thing,
        min_area=min_area,
        stuff_merge=stuff_merge,
    )
    assert found.dtype == torch.int32
    assert [x["id"] for x in segments] == list(range(1, len(segments) + 1))
    assert [x["area"] for x in segments] == [(found == x["id"]).sum().item() for x in segments]
    return found.tolist(), segments


def rows(drawing: str) -> list[list[int]]:
    return [[int(x) for x in row] for row in drawing.split()]


def test_queries_above_the_threshold():
    """Of five: sure, no-object, below the threshold, sure of another class, and sure of no-object at a tie."""
    logits = torch.tensor(
        [[0.9, 0.06, 0.04], [0.05, 0.05, 0.9], [0.7, 0.2, 0.1], [0.04, 0.92, 0.04], [0.0, 0.0, 1.0]]
    ).log()
    queries, labels, scores = panoptic_queries(logits, 0.85)
    assert queries.tolist() == [0, 3]
    assert labels.tolist() == [0, 1]
    assert scores.tolist() == pytest.approx([0.9, 0.92])


def test_no_object_counts_in_the_softmax():
    """Without it the score would be 0.9 / 0.9."""
    logits = torch.tensor([[0.5, 0.1, 0.4]]).log()
    assert panoptic_queries(logits, 0.49)[0].tolist() == [0]
    assert panoptic_queries(logits, 0.51)[0].tolist() == []


def test_a_score_at_the_threshold_is_not_enough():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]])
    assert panoptic_queries(logits, 0.5)[0].tolist() == []
    assert panoptic_queries(logits, 0.499)[0].tolist() == [0]


LEFT_RIGHT_BOTTOM = drawn("2200 2200 2200 0000", "0022 0022 0022 0000", "1111 1111 1111 2222")


@both_merges
def test_things_of_a_class_stay_apart(stuff_merge):
    found, segments = segment(LEFT_RIGHT_BOTTOM, [DOG, DOG, CUP], stuff_merge=stuff_merge, min_area=3)
    assert found == rows("1122 1122 1122 3333")
    assert segments == [
        {"id": 1, "category_id": DOG, "isthing": True, "score": pytest.approx(0.90), "area": 6},
        {"id": 2, "category_id": DOG, "isthing": True, "score": pytest.approx(0.91), "area": 6},
        {"id": 3, "category_id": CUP, "isthing": True, "score": pytest.approx(0.92), "area": 4},
    ]


def test_stuff_of_a_class_is_one_segment():
    """Of the first of its queries; the sea's query has a number of its own after them."""
    found, segments = segment(LEFT_RIGHT_BOTTOM, [SKY, SKY, SEA], stuff_merge="exact", min_area=3)
    assert found == rows("1111 1111 1111 2222")
    assert segments == [
        {"id": 1, "category_id": SKY, "isthing": False, "score": pytest.approx(0.90), "area": 12},
        {"id": 2, "category_id": SEA, "isthing": False, "score": pytest.approx(0.92), "area": 4},
    ]


def test_the_caller_decides_what_is_stuff():
    """The same classes with things and stuff exchanged."""
    found, segments = segment(LEFT_RIGHT_BOTTOM, [CUP, CUP, SEA], stuff_merge="exact", min_area=3, is_thing=~IS_THING)
    assert found == rows("1111 1111 1111 2222")
    assert [x["isthing"] for x in segments] == [False, True]
    assert segment(LEFT_RIGHT_BOTTOM, [SKY, SKY, SEA], min_area=3, is_thing=~IS_THING)[0] == rows("1122 1122 1122 3333")


def test_pixels_of_merged_stuff_change_hands_in_the_original_alone():
    """Sky on the left and, from a second query, at the upper right, where the lower right's dog comes second."""
    logits = drawn("3311 3311 3300 3300", "0033 0033 0000 0000", "0022 0022 0033 0033")
    found, segments = segment(logits, [SKY, SKY, DOG], stuff_merge="original", min_area=3)
    assert found == rows("1122 1122 1122 1122")  # the second sky, merged away, took no part any more
    assert [(x["category_id"], x["area"]) for x in segments] == [(SKY, 8), (DOG, 8)]
    found, segments = segment(logits, [SKY, SKY, DOG], stuff_merge="exact", min_area=3)
    assert found == rows("1111 1111 1122 1122")
    assert [(x["category_id"], x["area"]) for x in segments] == [(SKY, 12), (DOG, 4)]


def test_stuff_that_is_large_only_together():
    """Two queries of sky, of 3 pixels each and 6 together, in a sea that comes second everywhere."""
    logits = drawn("3330 0000 0000 0000", "0000 0000 0000 0333", "2222 2222 2222 2222")
    found, segments = segment(logits, [SKY, SKY, SEA], stuff_merge="exact")
    assert found == rows("1112 2222 2222 2111")
    assert [(x["category_id"], x["area"]) for x in segments] == [(SKY, 6), (SEA, 10)]
    # The original drops the second sky, since it is merged away, and then the first, since 3 pixels are too few.
    found, segments = segment(logits, [SKY, SKY, SEA], stuff_merge="original")
    assert found == rows("1111 1111 1111 1111")
    assert [(x["category_id"], x["area"]) for x in segments] == [(SEA, 16)]


def test_exact_merges_the_pixels_of_dropped_segments_too():
    """A cup of 2 pixels, under which the second sky lies."""
    logits = drawn("3333 3333 0000 0000", "0000 0000 2233 3333", "0000 0000 3300 0000")
    found, segments = segment(logits, [SKY, SKY, CUP], stuff_merge="exact")
    assert found == rows("1111 1111 1111 1111")
    assert [(x["category_id"], x["area"]) for x in segments] == [(SKY, 16)]


@both_merges
def test_a_segment_of_four_pixels_is_dropped_and_one_of_five_kept(stuff_merge):
    """Cups of 4 and 5 pixels before a dog, which takes the pixels of the one that is dropped."""
    logits = drawn("3300 3300 0000 0000", "0000 0000 0333 0033", "2222 2222 2222 2222")
    found, segments = segment(logits, [CUP, CUP, DOG], stuff_merge=stuff_merge, min_area=3)
    assert found == rows("1133 1133 3222 3322")
    assert [x["area"] for x in segments] == [4, 5, 7]
    found, segments = segment(logits, [CUP, CUP, DOG], stuff_merge=stuff_merge, min_area=4)
    assert found == rows("2222 2222 2111 2211")
    assert [x["area"] for x in segments] == [5, 11]


@both_merges
def test_all_small_segments_are_dropped_at_once(stuff_merge):
    """Two cups of 4 pixels, each second where the other is: neither gets the other's."""
    logits = drawn("3300 3300 0022 0022", "2200 2200 0033 0033", "1122 1122 2211 2211")
    found, segments = segment(logits, [CUP, CUP, DOG], stuff_merge=stuff_merge)
    assert found == rows("1111 1111 1111 1111")
    assert [x["category_id"] for x in segments] == [DOG]


@both_merges
def test_without_queries_the_map_is_void(stuff_merge):
    found, segments = segment(torch.empty(0, 4, 4), [], size=(2, 3), stuff_merge=stuff_merge)
    assert found == rows("000 000")
    assert segments == []


@both_merges
def test_where_all_is_dropped_the_map_is_void(stuff_merge):
    """An output of 2 x 2 has room for no segment above 4 pixels."""
    found, segments = segment(LEFT_RIGHT_BOTTOM, [DOG, SKY, SEA], size=(2, 2), stuff_merge=stuff_merge)
    assert found == rows("00 00")
    assert segments == []


def test_pixels_are_those_at_the_centers():
    """Of five columns, three new ones have their centers in the first, the third and the fifth; of one row, two."""
    logits = drawn("30000", "03000", "00300", "00030", "00003")
    found, segments = segment(logits, [CUP] * 5, size=(2, 3), min_area=1)
    assert found == rows("123 123")
    assert [round(x["score"], 2) for x in segments] == [0.90, 0.92, 0.94]


def test_padding_is_cut_off():
    """A batch padded from 4 to 8 columns: a dog in the padding shows nowhere, and takes no room."""
    logits = drawn("33300000 33300000 33300000 33300000", "00033333 00033333 00033333 00033333")
    found, _ = panoptic_segmentation(
        logits,
        torch.tensor([CUP, DOG]),
        torch.ones(2),
        padded_size=(4, 8),
        image_size=(4, 4),
        size=(4, 4),
        is_thing=IS_THING,
        min_area=3,
        stuff_merge="original",
    )
    assert found.tolist() == rows("1112 1112 1112 1112")


@both_merges
def test_large_maps_are_made_in_parts(stuff_merge):
    """More masks and rows than are worked on at once, against the highest logit of each pixel."""
    logits = torch.randn(23, 150, 40, generator=torch.Generator().manual_seed(0)) + torch.arange(23)[:, None, None] / 9
    found, segments = segment(logits, [CUP] * 23, stuff_merge=stuff_merge, min_area=0)
    winners, expected = logits.argmax(0).unique(return_inverse=True)
    assert len(segments) == len(winners) > 15
    assert torch.equal(torch.tensor(found), expected + 1)


def test_segments_can_be_written_as_json():
    """And Detectron2's evaluator asks ``isthing is True``."""
    _, segments = segment(LEFT_RIGHT_BOTTOM, [DOG, SKY, SEA], min_area=3)
    assert json.loads(json.dumps(segments)) == segments
    assert [x["isthing"] is True for x in segments] == [True, False, False]


@pytest.mark.parametrize("highest", [0.0, 3.7, 40.0])
def test_the_fast_assignment_of_pixels_rounds_as_softmax_does(highest):
    """Logits a few roundings below the highest, where softmax makes some equal and not others."""
    steps = torch.randint(0, 30, (12, 60, 70), generator=torch.Generator().manual_seed(0))
    logits = highest - steps * 2e-8 * max(highest, 1)
    logits[:, 0] = torch.randn(12, 70, generator=torch.Generator().manual_seed(1))
    logits[3, 1] = torch.nan
    expected = _assign(logits)
    assert torch.equal(_assign_on_cpu(logits), expected)
    if not highest:  # two different numbers near 3.7 are so far apart that softmax tells them apart
        assert not torch.equal(logits.argmax(0)[2:], expected[2:])
