"""What a training step brings to the host: the matching cost, once, for all layers and images."""

import pytest
import torch

from detr.modeling.criterion import SetCriterion
from detr.modeling.matcher import HungarianMatcher, Targets
from tests.far_device import FarTensor, recording

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


@pytest.mark.parametrize(
    ("waiting", "operator"),
    [
        (lambda x: x.sum().item(), "aten._local_scalar_dense.default"),
        (lambda x: x.cpu(), DOWNLOAD),
        (lambda x: x.to("cpu"), DOWNLOAD),
        (lambda x: x[x > 0], "aten.index.Tensor"),
        (lambda x: (x > 0).nonzero(), "aten.nonzero.default"),
        (lambda x: bool(x.any()), "aten.is_nonzero.default"),
    ],
)
def test_waiting_is_noticed(waiting, operator):
    with recording() as waits:
        waiting(FarTensor(torch.randn(5)))
    assert len(waits) == 1
    assert waits[0] in (operator, "aten._local_scalar_dense.default")
