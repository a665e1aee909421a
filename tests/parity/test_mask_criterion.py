"""Mask and dice losses of the same outputs and targets."""

import pytest
import torch

from detr.modeling.criterion import SetCriterion
from detr.modeling.matcher import HungarianMatcher, Targets
from tests.parity.oracle import PANOPTIC_CLASSES, build_original, original_targets

Q, SIZE = 20, (24, 32)  # queries, and size of the mask logits; the ground truth is larger by about 4


def outputs(images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": torch.randn(images, Q, PANOPTIC_CLASSES + 1, generator=generator),
        "pred_boxes": torch.rand(images, Q, 4, generator=generator) * 0.4 + 0.2,
        "pred_masks": 3 * torch.randn(images, Q, *SIZE, generator=generator),
    }


@pytest.fixture(scope="module")
def original_criterion():
    return build_original("detr_R_50", num_classes=PANOPTIC_CLASSES, masks=True, enc_layers=1, dec_layers=1)[1]


@pytest.mark.parametrize("objects", [[5], [7, 3], [4, 0], [0, 0]], ids=str)
def test_mask_losses(original_criterion, objects):
    generator = torch.Generator().manual_seed(sum(objects))
    sizes = [(97, 120), (90, 128)][: len(objects)]  # (height, width) of each image; both are padded in the batch of two
    labels = [torch.randint(0, PANOPTIC_CLASSES, (n,), generator=generator) for n in objects]
    boxes = [torch.rand(n, 4, generator=generator) * 0.3 + 0.2 for n in objects]
    masks = [torch.rand(n, *size, generator=generator) > 0.6 for n, size in zip(objects, sizes, strict=True)]
    found = outputs(len(objects))

    expected = original_criterion(found, original_targets([x.tolist() for x in labels], boxes, masks))

    padded = torch.zeros(sum(objects), max(h for h, _ in sizes), max(w for _, w in sizes), dtype=torch.bool)
    start = 0
    for mask in masks:
        padded[start : start + len(mask), : mask.shape[1], : mask.shape[2]] = mask
        start += len(mask)
    targets = Targets(torch.cat(labels), torch.cat(boxes), objects, padded)
    criterion = SetCriterion(matcher=HungarianMatcher(), num_classes=PANOPTIC_CLASSES)
    # An earlier layer, of other outputs, has no masks.
    earlier = outputs(len(objects), seed=9)
    logits, boxes = (torch.stack([earlier[key], found[key]]) for key in ("pred_logits", "pred_boxes"))
    _, matches = criterion(logits, boxes, targets)
    last = matches.of_last_layer(2)
    assert last.layer.tolist() == [1] * sum(objects)
    losses = criterion.mask_losses(found["pred_masks"][last.image, last.query], targets, last)
    assert losses.keys() == {"loss_mask", "loss_dice"}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=0)
        assert bool(loss > 0) == (sum(objects) > 0)
