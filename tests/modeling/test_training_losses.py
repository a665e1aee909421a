"""The losses of a training step with denoising queries, groups and anchors, and the gradients that they give."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn.functional import log_softmax
from torchvision.ops import box_convert, generalized_box_iou

from detr.modeling.criterion import SetCriterion
from detr.modeling.denoising import Denoising
from detr.modeling.matcher import HungarianMatcher
from tests.conftest import make_input
from tests.modeling.test_denoising import K, targets_of
from tests.modeling.training_parts import (
    BOXES,
    NO_NOISE,
    OBJECTS,
    OFF,
    PARTS,
    build_pair,
    make_batch,
    step,
    training_outputs,
)

LAYERS, COPIES = 2, 2
NAMES = ("loss_ce", "loss_bbox", "loss_giou")


@pytest.fixture
def criterion():
    return SetCriterion(matcher=HungarianMatcher(), num_classes=K)


def random_outputs(images, queries):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(LAYERS, images, queries, K + 1, generator=generator)
    boxes = torch.rand(LAYERS, images, queries, 4, generator=generator) * 0.4 + 0.2
    return logits.requires_grad_(), boxes.requires_grad_()


def denoising_losses_by_hand(logits, boxes, targets, layer, kinds, copies):
    """Query by query, in the order of copies, positives before negatives, and objects. copies: of each image"""
    first, share = 0, sum(targets.sizes) / sum(a * b for a, b in zip(copies, targets.sizes, strict=True))
    total = {"loss_ce_dn": 0.0, "loss_bbox_dn": 0.0, "loss_giou_dn": 0.0}
    weights = 0.0
    for image, size in enumerate(targets.sizes):
        for copy in range(copies[image]):
            for kind in range(kinds):
                for index in range(size):
                    query = (copy * kinds + kind) * size + index
                    truth = first + index
                    answer, weight = (int(targets.labels[truth]), 1.0) if kind == 0 else (K, 0.1)
                    total["loss_ce_dn"] -= weight * log_softmax(logits[layer, image, query], 0)[answer]
                    weights += weight
                    if kind == 0:
                        box, wanted = boxes[layer, image, query], targets.boxes[truth]
                        overlap = generalized_box_iou(
                            *(box_convert(x[None], "cxcywh", "xyxy") for x in (box, wanted)),
                        )
                        total["loss_bbox_dn"] += 5 * (box - wanted).abs().sum() / sum(targets.sizes) * share
                        total["loss_giou_dn"] += 2 * (1 - overlap[0, 0]) / sum(targets.sizes) * share
        first += size
    total["loss_ce_dn"] /= weights
    return total


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize(("sizes", "copies"), [((2, 0, 1), (1, 0, 2)), ((2, 2), (2, 2)), ((1, 3), (2, 1))], ids=str)
def test_denoising_losses_by_hand(criterion, sizes, copies, negatives):
    targets = targets_of(sizes)
    noised = Denoising(K, COPIES, negatives=negatives)(targets, limit=100)
    logits, boxes = random_outputs(*noised.copy.shape)
    losses = criterion.denoising_losses(logits, boxes, targets, noised)
    assert losses.keys() == {f"{name}_dn{suffix}" for name in NAMES for suffix in ("", "_0")}
    for layer, suffix in enumerate(("_0", "")):
        for name, expected in denoising_losses_by_hand(logits, boxes, targets, layer, 1 + negatives, copies).items():
            torch.testing.assert_close(losses[name + suffix], expected, msg=name + suffix)
    sum(losses.values()).backward()
    assert not logits.grad[:, noised.copy < 0].any()
    assert logits.grad[:, noised.copy >= 0].any(-1).all()


def test_without_objects_denoising_losses_are_nothing(criterion):
    targets = targets_of([0, 0])
    noised = Denoising(K)(targets, limit=100)
    logits, boxes = random_outputs(*noised.copy.shape)
    losses = criterion.denoising_losses(logits, boxes, targets, noised)
    assert len(losses) == 6
    assert all(loss.shape == () and loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    for x in (logits, boxes):
        assert not x.grad.any()  # and yet there is one, as distributed training wants


@pytest.mark.parametrize("sizes", [(2, 0, 1), (0, 0), (4, 1)], ids=str)
def test_losses_of_groups_are_means_and_matches_those_of_the_first(criterion, sizes):
    """The fullest image has more objects than a group has queries."""
    targets, groups, queries = targets_of(sizes), 4, 3
    logits, boxes = random_outputs(len(sizes), groups * queries)
    losses, matches = criterion(logits, boxes, targets, groups)
    parts = zip(logits.split(queries, dim=2), boxes.split(queries, dim=2), strict=True)
    alone = [criterion(*part, targets) for part in parts]
    assert losses.keys() == alone[0][0].keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, torch.stack([of_group[name] for of_group, _ in alone]).mean(), msg=name)
    pairs = [
        [x.layer.tolist(), x.image.tolist(), x.query.tolist(), x.target.tolist()]
        for x in (matches, *(of_group for _, of_group in alone))
    ]
    assert pairs[0] == pairs[1]
    assert (pairs[1] == pairs[2]) == (sum(sizes) == 0)  # else another group's would do as well


PLAIN_NAMES = {f"{name}{suffix}" for name in NAMES for suffix in ("", "_0")}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("deep", [True, False])
def test_names_of_losses(tiny_config, part, deep):
    model = build_model(tiny_config({**PARTS[part], "MODEL.DETR.DEEP_SUPERVISION": deep})).train()
    expected = set(NAMES) if not deep else PLAIN_NAMES
    if model.training_queries.denoising is not None:
        expected = expected | {name.replace("_0", "") + "_dn" + "_0" * name.endswith("_0") for name in expected}
    assert model(make_batch()).keys() == expected


@pytest.mark.parametrize("objects", OBJECTS, ids=str)
@pytest.mark.parametrize("part", ["denoising", "anchors"])
def test_object_queries_have_the_losses_of_the_plain_model(tiny_config, part, objects):
    plain, model = build_pair(tiny_config, {**PARTS[part], "MODEL.MASK_ON": True})
    (expected, _), (found, _) = (step(x, make_batch(objects, masks=True)) for x in (plain, model))
    assert expected.keys() == {*PLAIN_NAMES, "loss_mask", "loss_dice"}
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-3, atol=1e-5, msg=name)


def test_masks_are_those_of_the_kept_group(tiny_config):
    plain, model = build_pair(tiny_config, {**PARTS["all"], "MODEL.MASK_ON": True})
    inputs = make_batch(masks=True)
    (expected, _), (found, _) = (step(x, inputs) for x in (plain, model))
    for name in ("loss_mask", "loss_dice"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-5)
        assert found[name] > 0


def test_losses_of_a_step_are_those_of_its_queries(tiny_config):
    """Without noise a step can be computed again, part by part."""
    _, model = build_pair(tiny_config, {**PARTS["all"], **NO_NOISE, "MODEL.DETR.DENOISING.NEGATIVES": False})
    inputs = make_batch()
    losses, _ = step(model, inputs)
    with torch.no_grad():
        outputs = training_outputs(model, inputs)
        targets = model.targets(inputs, (96, 128))
        groups = [
            model.criterion(outputs.all_logits[:, :, i : i + 20], outputs.all_boxes[:, :, i : i + 20], targets)[0]
            for i in (0, 20, 40)
        ]
        noised = outputs.queries.noised
        expected = {name: torch.stack([x[name] for x in groups]).mean() for name in PLAIN_NAMES}
        expected |= model.criterion.denoising_losses(
            outputs.all_logits[:, :, 60:], outputs.all_boxes[:, :, 60:], targets, noised
        )
    assert noised.copy.max() == 3
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-4, atol=1e-5, msg=name)


SETTINGS = {
    "batch norm": {},
    "frozen norms, masks": {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.MASK_ON": True},
    "pre-norm, last layer only": {"MODEL.DETR.PRE_NORM": True, "MODEL.DETR.DEEP_SUPERVISION": False},
    "learned positions": {"MODEL.DETR.POSITION_EMBEDDING": "learned"},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("part", PARTS)
def test_every_parameter_has_a_gradient(tiny_config, part, settings):
    """Distributed training hangs on a trainable parameter without one."""
    torch.manual_seed(0)
    model = build_model(tiny_config({**PARTS[part], **SETTINGS[settings]})).train()
    for objects in OBJECTS:
        losses, gradients = step(model, make_batch(objects, masks=model.mask_head is not None))
        assert all(loss.isfinite() for loss in losses.values())
        assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        for name, gradient in gradients.items():
            if name.startswith("training_queries.") and sum(objects):
                assert gradient.any(), name
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"query_embed.weight"} if model.training_queries.anchors is not None else set())


def test_crowds_of_objects_train(tiny_config):
    """More objects than queries, and more than denoising queries are wanted."""
    model = build_model(tiny_config({**PARTS["all"], "MODEL.DETR.NUM_OBJECT_QUERIES": 2})).train()
    losses, _ = step(model, [make_input(BOXES * 3, [0, 1, 2] * 3)])
    assert all(loss.isfinite() for loss in losses.values())


def test_switched_off_nothing_is_left(tiny_config):
    """Keys of what is off change neither the parameters, nor the random numbers drawn, nor the losses."""
    other = {"MODEL.DETR.DENOISING.COPIES": 7, "MODEL.DETR.DENOISING.BOX_NOISE": 0.1, **OFF}
    results = []
    for settings in ({}, other):
        torch.manual_seed(0)
        model = build_model(tiny_config(settings)).train()
        drawn = torch.get_rng_state()
        assert model.training_queries is None
        losses = {name: loss.item() for name, loss in model(make_batch()).items()}
        assert torch.equal(drawn, torch.get_rng_state())  # the step draws none
        results.append((list(model.state_dict()), drawn.tolist(), losses))
        parts = {name.split(".")[0] for name in model.state_dict()}
        assert parts == {"backbone", "input_proj", "transformer", "query_embed", "class_embed", "bbox_embed"}
    assert results[0] == results[1]
