"""What the queries of a training step see of each other, and what they leave of the object queries."""

import pytest
import torch
from torch import nn

from detr.modeling.denoising import Denoising
from detr.modeling.matcher import Targets
from detr.modeling.training_queries import TrainingQueries
from tests.modeling.training_parts import OBJECTS, PARTS, build_pair, make_batch, training_outputs

Q = 20  # of the quickstart


def visible(rows):
    """A mask, True = not seen, of a drawing, 1 = seen."""
    return torch.tensor([[x == "0" for x in row.replace(" ", "")] for row in rows])


def test_what_queries_see_by_hand():
    """Two groups of two object queries; two copies of the second image's only object, and one of the first's three."""
    queries = TrainingQueries(num_queries=2, d=8, groups=2, denoising=Denoising(3, copies=2, negatives=False))
    targets = Targets(torch.tensor([0, 1, 2, 0]), torch.full((4, 4), 0.5), [3, 1])
    found = queries(torch.zeros(2, 8), targets)
    assert (found.groups, found.num_objects) == (2, 4)
    of_objects = ["11 00 000"] * 2 + ["00 11 000"] * 2
    first = [*of_objects, *["00 00 111"] * 3]
    second = [*of_objects, "00 00 100", "00 00 010", "00 00 001"]  # the last one is padding
    assert torch.equal(found.mask, torch.stack([visible(first), visible(second)]))


def test_groups_alone_need_one_mask_for_all_images():
    queries = TrainingQueries(num_queries=1, d=8, groups=3)
    found = queries(torch.zeros(1, 8), Targets(torch.tensor([0]), torch.full((1, 4), 0.5), [1, 0]))
    assert torch.equal(found.mask, visible(["100", "010", "001"])[None])
    assert found.content is found.noised is None


def test_anchors_alone_start_with_rows_that_differ_as_those_of_a_plain_detr():
    """Embedded boxes are nearly alike before denoising has taught them apart: queries that are alike stay so."""
    torch.manual_seed(0)
    queries = TrainingQueries(num_queries=50, d=64, anchors=True)
    assert queries.kept_queries().std(dim=0).mean() > 0.8


def test_object_queries_start_from_nothing_and_denoising_queries_from_labels():
    queries = TrainingQueries(num_queries=2, d=8, denoising=Denoising(3, copies=1, label_noise=0.0, negatives=False))
    rows = torch.randn(2, 8)
    found = queries(rows, Targets(torch.tensor([2, 0, 1]), torch.rand(3, 4), [2, 1]))
    assert torch.equal(found.embed[:, :2], rows.expand(2, -1, -1))
    assert not found.content[:, :2].any()
    assert torch.equal(found.content[0, 2:], queries.label_embed.weight[[2, 0]])
    assert torch.equal(found.content[1, 2], queries.label_embed.weight[1])
    assert torch.equal(found.embed[:, 2:], queries.embed_boxes(found.noised.boxes))


SETTINGS = {
    "post-norm": {},
    "pre-norm": {"MODEL.DETR.PRE_NORM": True},
    "learned positions, masks": {"MODEL.DETR.POSITION_EMBEDDING": "learned", "MODEL.MASK_ON": True},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("objects", OBJECTS, ids=str)
@pytest.mark.parametrize("part", PARTS)
@torch.no_grad()
def test_object_queries_compute_what_they_compute_alone(tiny_config, part, objects, settings):
    """The second image is padded."""
    plain, model = build_pair(tiny_config, {**PARTS[part], **SETTINGS[settings]})
    inputs = make_batch(objects, masks=model.mask_head is not None)
    expected, found = training_outputs(plain, inputs), training_outputs(model, inputs)
    logits, boxes, features = found
    assert len(logits) == 2
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(boxes, expected.boxes, rtol=1e-4, atol=1e-5)
    if features is not None:
        torch.testing.assert_close(features.queries, expected.mask_features.queries, rtol=1e-4, atol=1e-5)
    assert found.all_logits.shape[2] > Q or part == "anchors"
    assert found.all_logits.isfinite().all()
    assert found.all_boxes.isfinite().all()


@torch.no_grad()
def test_a_group_computes_what_it_computes_alone(tiny_config):
    plain, model = build_pair(tiny_config, PARTS["all"])
    inputs = make_batch()
    found = training_outputs(model, inputs)
    rows = model.training_queries.object_queries(model.query_embed.weight)
    for group, of_group in enumerate(rows.split(Q)):
        plain.query_embed.weight.copy_(of_group)
        expected = training_outputs(plain, inputs)
        of_outputs = slice(group * Q, (group + 1) * Q)
        torch.testing.assert_close(found.all_logits[:, :, of_outputs], expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.all_boxes[:, :, of_outputs], expected.boxes, rtol=1e-4, atol=1e-5)


def changes(name, where):
    """A change of the queries' field: other numbers for those chosen by ``where`` (N, R)."""

    def changed(queries):
        values = getattr(queries, name).clone()
        values[where(queries)] += 3.0
        return values

    return {name: changed}


def copy_of(queries, copy):
    """(N, R) bool: the denoising queries of a copy."""
    return nn.functional.pad(queries.noised.copy == copy, (queries.num_objects, 0))


@pytest.mark.parametrize("name", ["embed", "content"])
@pytest.mark.parametrize(
    "where", [lambda queries: copy_of(queries, 1), lambda queries: copy_of(queries, -1)], ids=["a copy", "padding"]
)
@torch.no_grad()
def test_no_query_sees_another_copy_or_padding(tiny_config, where, name):
    _, model = build_pair(tiny_config, PARTS["all"])
    results = []
    chosen = []
    for change in ({}, changes(name, where)):
        torch.manual_seed(0)  # the same noise
        results.append(training_outputs(model, make_batch(), **change))
        chosen.append(where(results[-1].queries))
    assert torch.equal(*chosen)
    assert chosen[0].any()
    before, after = (torch.cat([x.all_logits, x.all_boxes], dim=-1) for x in results)  # (L, N, R, K + 5)
    torch.testing.assert_close(after[:, ~chosen[0]], before[:, ~chosen[0]], rtol=1e-5, atol=1e-5)
    assert (after - before)[:, chosen[0]].abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_a_copys_queries_see_each_other_and_negatives_too(tiny_config):
    """The first image has three objects, so that a copy is three positives and three negatives."""
    _, model = build_pair(tiny_config, PARTS["denoising"])
    results = []
    for shift in (0.0, 3.0):
        torch.manual_seed(0)

        def changed(queries, shift=shift):
            content = queries.content.clone()
            content[0, queries.num_objects + 3] += shift  # the first negative of the first copy
            return content

        results.append(training_outputs(model, make_batch(), content=changed).all_logits)
    moved = (results[1] - results[0]).abs().amax((0, 3))  # (N, R)
    assert (moved[0, Q : Q + 6] > 1e-4).all()
    assert moved[0, :Q].max() < 1e-4
    assert moved[0, Q + 6 :].max() < 1e-4
    assert moved[1].max() < 1e-4
