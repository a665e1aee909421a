"""A training step brings two things to the host: the matching cost of all layers and images, and the metrics."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from detr.modeling.criterion import SetCriterion
from detr.modeling.matcher import HungarianMatcher, Targets
from tests.conftest import make_input, with_masks
from tests.far_device import FarTensor, recording
from tests.modeling.training_parts import PARTS

LAYERS, IMAGES, QUERIES, CLASSES = 6, 3, 20, 5
DOWNLOAD = "aten._to_copy.default"


def batch():
    generator = torch.Generator().manual_seed(0)
    sizes = [4, 0, 7]
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + 1, generator=generator)
    boxes = torch.rand(LAYERS, IMAGES, QUERIES, 4, generator=generator) * 0.4 + 0.2
    labels = torch.randint(0, CLASSES, (sum(sizes),), generator=generator)
    truth = torch.rand(sum(sizes), 4, generator=generator) * 0.4 + 0.2
    masks = torch.rand(sum(sizes), 16, 24, generator=generator) > 0.5
    return logits, boxes, Targets(labels, truth, sizes, masks)


def far_targets(targets):
    return Targets(FarTensor(targets.labels), FarTensor(targets.boxes), targets.sizes, FarTensor(targets.masks))


def all_losses(criterion, logits, boxes, mask_logits, targets):
    losses, matches = criterion(logits, boxes, targets)
    losses |= criterion.mask_losses(mask_logits, targets, matches.of_last_layer(LAYERS))
    return losses, criterion.metrics(logits, targets, matches)


def test_matching_losses_and_metrics_wait_for_one_transfer():
    logits, boxes, targets = batch()
    mask_logits = torch.randn(sum(targets.sizes), 4, 6)
    criterion = SetCriterion(matcher=HungarianMatcher(), num_classes=CLASSES)
    expected, metrics = all_losses(criterion, logits, boxes, mask_logits, targets)
    with recording() as waits:
        criterion.class_weight = FarTensor(criterion.class_weight)
        outputs = [FarTensor(x.clone().requires_grad_()) for x in (logits, boxes, mask_logits)]
        far, far_metrics = all_losses(criterion, *outputs, far_targets(targets))
        sum(far.values()).backward()
        assert waits == [DOWNLOAD]
    for found, near in ((far, expected), (far_metrics, metrics)):
        assert found.keys() == near.keys()
        for name in near:
            torch.testing.assert_close(found[name].near, near[name])
    assert all(torch.isfinite(x.grad.near).all() for x in outputs)


def move_far(model):
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(FarTensor(value.detach()), value.requires_grad))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, FarTensor(value))


@pytest.mark.parametrize("training", [{}, *PARTS.values()], ids=["plain", *PARTS])
@pytest.mark.parametrize("norm", ["BN", "FrozenBN"])
def test_a_whole_step_waits_for_the_matching_cost_and_the_metrics(tiny_config, norm, training):
    model = build_model(tiny_config({"MODEL.MASK_ON": True, "MODEL.RESNETS.NORM": norm, **training})).train()
    boxes = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0]]
    inputs = [with_masks(make_input(boxes, [1, 3], size)) for size in ((96, 128), (90, 101))]
    with recording() as waits, EventStorage() as storage:
        move_far(model)
        losses = model(inputs)
        sum(losses.values()).backward()
        assert waits == [DOWNLOAD, "tolist"]
        assert storage.latest().keys() == {"class_error", "cardinality_error"}
    assert all(loss.near.isfinite() for loss in losses.values())
    assert all(p.grad.near.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("waiting", "operator"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense.default"),
        (lambda x: x.cpu(), DOWNLOAD),
        (lambda x: x.to("cpu"), DOWNLOAD),
        (lambda x: x[x > 0], "aten.index.Tensor"),
        (lambda x: (x > 0).nonzero(), "aten.nonzero.default"),
        (lambda x: bool(x.any()), "aten.is_nonzero.default"),
        (lambda x: x.tolist(), "tolist"),
    ],
)
def test_waiting_is_noticed(waiting, operator):
    with recording() as waits:
        waiting(FarTensor(torch.randn(5)))
    assert len(waits) == 1
    assert waits[0] in (operator, "aten._local_scalar_dense.default")
