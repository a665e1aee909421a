"""The same weights give the same numbers: logits, boxes, masks, positions, gradients."""

import copy

import pytest
import torch
from detectron2.structures import ImageList

from detr.checkpoint.formats import to_detectron2
from detr.modeling.backbone import padded_sizes, sampled_padding
from tests.conftest import TRAINING_QUERIES, as_opts
from tests.parity.oracle import build_original, load_oracle, run_original
from tests.parity.pairs import (
    MODELS,
    PADDED,
    SINGLE,
    config,
    converted,
    image_batch,
    make_pair,
    random_targets,
    return_intermediate,
    run_ours,
)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_of_all_decoder_layers(name):
    pair = make_pair(name)
    for sizes in (PADDED, SINGLE):
        images = image_batch(sizes)
        with torch.no_grad():
            logits, boxes = run_ours(pair.ours, images)
            expected_logits, expected_boxes = return_intermediate(run_original(pair.original, images))
        assert expected_logits.std() > 1  # lively: else agreement says little
        torch.testing.assert_close(logits, expected_logits, atol=1e-9, rtol=0)
        torch.testing.assert_close(boxes, expected_boxes, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_in_single_precision(name):
    """Fresh weights, which amplify little: rounding alone stays within the bounds."""
    original, _, _ = build_original(name)
    for key, buffer in original.backbone.named_buffers():
        if key.endswith("bn3.weight"):
            buffer.mul_(0.2)  # else features grow to 1e5, and their rounding decides where the attention looks
    ours = converted(original, config(name))
    for sizes in (PADDED, SINGLE):
        images = image_batch(sizes, torch.float32)
        with torch.no_grad():
            logits, boxes = run_ours(ours, images)
            expected_logits, expected_boxes = return_intermediate(run_original(original, images))
        torch.testing.assert_close(logits, expected_logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(boxes, expected_boxes, atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"pre_norm": True}, {"position_embedding": "learned"}], ids=str)
def test_outputs_of_the_variants(options):
    pair = make_pair("detr_R_50", **options)
    images = image_batch(PADDED)
    with torch.no_grad():
        logits, boxes = run_ours(pair.ours, images)
        expected_logits, expected_boxes = return_intermediate(run_original(pair.original, images))
    torch.testing.assert_close(logits, expected_logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(boxes, expected_boxes, atol=1e-9, rtol=0)


def test_outputs_with_queries_for_training_alone():
    """They start from the original's queries, and leave them where they are: before and after folding."""
    original = make_pair("detr_R_50").original
    ours = converted(original, config("detr_R_50", *as_opts(TRAINING_QUERIES)))
    images = image_batch(PADDED)
    with torch.no_grad():
        expected_logits, expected_boxes = return_intermediate(run_original(original, images))
        for fold in (False, True):
            if fold:
                ours.fold_queries()
            assert (ours.training_queries is None) == fold
            logits, boxes = run_ours(ours, images)
            torch.testing.assert_close(logits, expected_logits, atol=1e-9, rtol=0)
            torch.testing.assert_close(boxes, expected_boxes, atol=1e-9, rtol=0)


@pytest.mark.slow
def test_outputs_do_not_depend_on_the_auxiliary_layers():
    pair = make_pair("detr_R_50")
    images = ImageList.from_tensors(image_batch(PADDED))
    with torch.no_grad():
        every, last = (pair.ours.forward_network(images, return_intermediate=flag) for flag in (True, False))
    assert len(every[0]) == 6
    assert len(last[0]) == 1
    torch.testing.assert_close(every[0][-1:], last[0])
    torch.testing.assert_close(every[1][-1:], last[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr_R_50", "detr_R_50_DC5"])
@pytest.mark.parametrize("sizes", [[(223, 310), (301, 297)], [(480, 639), (333, 641)], [(64, 64), (65, 67)]], ids=str)
def test_padding_masks_are_equal(name, sizes):
    pair = make_pair(name)
    images = image_batch(sizes)
    with torch.no_grad():
        features, _ = pair.original.backbone(load_oracle().nested_tensor_from_tensor_list(images))
    expected = features[-1].mask
    assert torch.equal(padding_mask(images, expected), expected)


def test_padding_masks_are_not_those_of_rounded_up_sizes():
    """What the old wrapper did, and what the test above must be able to tell from the original's."""
    images = image_batch([(223, 310), (301, 297)])
    rounded = torch.ones(2, 10, 10, dtype=torch.bool)
    for mask, image in zip(rounded, images, strict=True):
        height, width = image.shape[-2:]
        mask[: -(-height // 32), : -(-width // 32)] = False
    assert not torch.equal(padding_mask(images, rounded), rounded)


def padding_mask(images, feature):
    """The padding of a batch where a feature (..., h, w) lies, as the model computes it."""
    batch = ImageList.from_tensors(images)
    return sampled_padding(padded_sizes(batch), tuple(batch.tensor.shape[-2:]), tuple(feature.shape[-2:]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sine", "learned"])
def test_position_encodings_and_masks_after_the_backbone_are_equal(kind):
    pair = make_pair("detr_R_50", position_embedding=kind)
    images = image_batch(PADDED)
    nested = load_oracle().nested_tensor_from_tensor_list(images)
    with torch.no_grad():
        features, positions = pair.original.backbone(nested)
        mask = padding_mask(images, features[-1].tensors)
        position = pair.ours.position_encoding(mask)
    assert mask.any()
    assert torch.equal(mask, features[-1].mask)
    assert torch.equal(position, positions[-1])


@pytest.mark.slow
def test_gradients_of_all_parameters():
    """One backward pass of the whole loss, dropout off."""
    pair = make_pair("detr_R_50", dropout=0.0)
    original, ours = pair.original, pair.ours
    images = image_batch(PADDED)
    targets, original_targets = random_targets([7, 3])
    original_targets = [{**target, "boxes": target["boxes"].double()} for target in original_targets]

    original.zero_grad()
    ours.zero_grad()
    criterion = copy.deepcopy(pair.criterion).double()
    losses, weights = criterion(run_original(original, images), original_targets), criterion.weight_dict
    sum(losses[key] * weights[key] for key in losses if key in weights).backward()
    expected = to_detectron2(
        {
            name: p.grad if p.grad is not None else torch.zeros_like(p)
            for name, p in original.state_dict(keep_vars=True).items()
        }
    ).state

    sum(ours.criterion(*run_ours(ours, images), targets)[0].values()).backward()
    # The first decoder layer's self-attention sees zeros only: its true gradient is 0, and both have rounding alone.
    rounding = 1e-9 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    checked = 0
    for name, parameter in ours.named_parameters():
        if not parameter.requires_grad:  # stem and res2
            continue
        error = (parameter.grad - expected[name]).norm()
        assert error < 1e-3 * expected[name].norm() + rounding, f"{name}: {error:.1e} of {expected[name].norm():.1e}"
        checked += 1
    trained = sum(p.requires_grad for p in original.parameters())
    assert checked == trained
    original.zero_grad()
    ours.zero_grad()
