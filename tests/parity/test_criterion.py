"""Matching and losses equal the original's, also where there is nothing to match."""

import copy

import pytest
import torch

from tests.parity.oracle import run_original
from tests.parity.pairs import PADDED, image_batch, make_pair, random_targets, return_intermediate


@pytest.fixture(scope="module")
def outputs():
    pair = make_pair("detr_R_50")
    with torch.no_grad():
        return in_single(run_original(pair.original, image_batch(PADDED)))


@pytest.fixture(scope="module")
def criterion():
    return copy.deepcopy(make_pair("detr_R_50").ours.criterion).float()


def in_single(outputs):
    """Matching and losses are in single precision; here the inputs of both sides are the same to the bit."""
    cast = {key: value.float() for key, value in outputs.items() if key != "aux_outputs"}
    return cast | {"aux_outputs": [{k: v.float() for k, v in layer.items()} for layer in outputs["aux_outputs"]]}


@pytest.mark.parametrize("sizes", [[5, 9], [40, 1], [0, 6], [130, 3]], ids=str)
def test_matched_pairs_are_identical(outputs, criterion, sizes):
    """130 objects are more than the 100 queries."""
    pair = make_pair("detr_R_50")
    targets, theirs = random_targets(sizes, seed=sum(sizes))
    matches = criterion.matcher(*return_intermediate(outputs), targets)
    starts = [0, sizes[0]]
    for layer, output in enumerate([*outputs["aux_outputs"], outputs]):
        for image, (queries, objects) in enumerate(pair.criterion.matcher(output, theirs)):
            here = (matches.layer == layer) & (matches.image == image)
            assert torch.equal(matches.query[here], queries)
            assert torch.equal(matches.target[here] - starts[image], objects)


@pytest.mark.parametrize("sizes", [[5, 9], [0, 6], [0, 0], [130, 3]], ids=str)
def test_every_loss(outputs, criterion, sizes):
    pair = make_pair("detr_R_50")
    targets, theirs = random_targets(sizes, seed=1)
    ours, matches = criterion(*return_intermediate(outputs), targets)
    expected = pair.criterion(outputs, theirs)
    weighted = {key: expected[key] * weight for key, weight in pair.criterion.weight_dict.items() if key in expected}
    assert ours.keys() == weighted.keys()
    assert len(ours) == 18
    for key, value in weighted.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-5, atol=0, msg=lambda text, key=key: f"{key}: {text}")

    logits, _ = return_intermediate(outputs)
    metrics = criterion.metrics(logits, targets, matches)
    assert not metrics.keys() & ours.keys()
    torch.testing.assert_close(metrics["class_error"], expected["class_error"])
    torch.testing.assert_close(metrics["cardinality_error"], expected["cardinality_error"])
