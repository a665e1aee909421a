"""All parts together learn: one batch is memorized, and the predictions are its ground truth."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import pairwise_iou

from detr.engine.solver import build_optimizer
from tests.conftest import make_input, with_masks

SIZE = (64, 64)
BOXES = [[6.0, 8.0, 30.0, 40.0], [36.0, 12.0, 60.0, 50.0]]
LABELS = [1, 3]
STEPS = 200


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_one_batch_is_memorized(tiny_config, masks):
    """An image with two objects, and one without any."""
    torch.manual_seed(0)
    cfg = tiny_config(
        {
            "MODEL.MASK_ON": masks,
            "MODEL.DETR.HIDDEN_DIM": 64,
            "MODEL.DETR.NUM_OBJECT_QUERIES": 8,
            "SOLVER.BASE_LR": 2e-3,
        }
    )
    model = build_model(cfg).train()
    if masks:
        with torch.no_grad():
            # Attention sums to 1 over all pixels: at first it hardly shows, and all masks of an image are alike.
            model.mask_head.lay1.weight[:, -model.mask_head.attention.heads :] *= 20
    optimizer = build_optimizer(cfg, model)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in optimizer.param_groups], STEPS)
    batch = [with_masks(make_input(BOXES, LABELS, SIZE, seed=0)), with_masks(make_input([], [], SIZE, seed=1))]
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
    assert sum(losses.values()) < (0.2 if masks else 0.05)  # of about 14 and 12 at the start; dice comes close slowly

    first, second = (output["instances"] for output in model.eval()(batch))
    assert second.scores.max() < 0.1
    truth = batch[0]["instances"]
    found = first[first.scores > 0.9]
    assert len(found) == len(truth)
    overlap, nearest = pairwise_iou(truth.gt_boxes, found.pred_boxes).max(1)
    assert overlap.min() > 0.9
    assert torch.equal(found.pred_classes[nearest], truth.gt_classes)
    if masks:
        predicted, expected = found.pred_masks[nearest], truth.gt_masks.tensor
        assert ((predicted & expected).sum((1, 2)) / (predicted | expected).sum((1, 2))).min() > 0.9
