"""Five steps of AdamW go the same way as the original's."""

import pytest
import torch

from detr.engine.solver import build_optimizer
from tests.parity.oracle import lively_original, run_original
from tests.parity.pairs import PADDED, config, converted, image_batch, random_targets, run_ours

pytestmark = pytest.mark.slow


def test_five_steps_give_the_same_losses():
    cfg = config("detr_R_50", "MODEL.DETR.DROPOUT", 0.0)
    original, criterion, _ = lively_original("detr_R_50", dropout=0.0)
    criterion.double()
    ours = converted(original.double(), cfg).double()
    images = image_batch(PADDED)
    targets, original_targets = random_targets([7, 3])
    original_targets = [{**target, "boxes": target["boxes"].double()} for target in original_targets]

    # The original's recipe: two groups, weight decay on all parameters, gradients clipped to 0.1 in all.
    backbone = [p for n, p in original.named_parameters() if "backbone" in n and p.requires_grad]
    rest = [p for n, p in original.named_parameters() if "backbone" not in n and p.requires_grad]
    theirs = torch.optim.AdamW([{"params": rest}, {"params": backbone, "lr": 1e-5}], lr=1e-4, weight_decay=1e-4)
    mine = build_optimizer(cfg, ours)
    assert sorted((g["lr"], g["weight_decay"]) for g in mine.param_groups) == [(1e-5, 1e-4), (1e-4, 1e-4)]

    history = []
    for _ in range(5):
        outputs = criterion(run_original(original, images), original_targets)
        expected = sum(outputs[key] * weight for key, weight in criterion.weight_dict.items())
        theirs.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_([*rest, *backbone], 0.1)
        theirs.step()

        loss = sum(ours.criterion(*run_ours(ours, images), targets)[0].values())
        mine.zero_grad()
        loss.backward()
        mine.step()
        history.append((loss.item(), expected.item()))
    for loss, expected in history:
        assert abs(loss - expected) < 1e-3 * expected, history
    assert history[-1][0] < history[0][0]
