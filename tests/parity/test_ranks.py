"""Two processes with an image each train as the original does on two: losses, gradients, weights after a step."""

import datetime

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel
from torchvision.ops import box_convert

from detr.checkpoint.formats import to_detectron2
from detr.engine.solver import build_optimizer
from detr.engine.training_step import build_step
from tests.parity.oracle import build_original, original_checkpoint, original_targets, run_original, sample_image
from tests.parity.pairs import config, converted

CLASSES = 6
SIZES = [(64, 96), (80, 64)]  # (height, width) of the ranks' images
SMALL = {"num_classes": CLASSES, "enc_layers": 1, "dec_layers": 2, "dim_feedforward": 64, "dropout": 0.0}
KEYS = {"NUM_CLASSES": CLASSES, "ENC_LAYERS": 1, "DEC_LAYERS": 2, "DIM_FEEDFORWARD": 64, "DROPOUT": 0.0}
OBJECTS = [(3, 1), (0, 2), (0, 0)]  # of the ranks' images
CASES = [(False, (3, 1)), *((True, objects) for objects in OBJECTS)]
LR = 1e-4
LR_OF_BACKBONE = 1e-5


def build(masks):
    """The original, its criterion, and ours with the same weights; fresh ones, in single precision."""
    original, criterion, _ = build_original("detr_R_50", masks=masks, **SMALL)
    for key, buffer in original.named_buffers():
        if key.endswith("bn3.weight"):
            buffer.mul_(0.2)  # else features grow to 1e5, and their rounding decides where the attention looks
    opts = [x for key, value in KEYS.items() for x in (f"MODEL.DETR.{key}", value)]
    opts += ["MODEL.DETR.FREEZE_DETR", False]
    cfg = config("detr_R_50", *opts, folder="COCO-InstanceSegmentation" if masks else "COCO-Detection")
    return original.train(), criterion.train(), converted(original, cfg).train(), cfg


def truth(rank, objects, size):
    """Labels, boxes cxcywh in [0, 1], masks (M, H, W)."""
    generator = torch.Generator().manual_seed(rank)
    labels = torch.randint(CLASSES, (objects,), generator=generator)
    boxes = torch.rand(objects, 4, generator=generator) * 0.3 + 0.2
    return labels, boxes, torch.rand(objects, *size, generator=generator) > 0.6


def step_of_the_original(original, criterion, rank, objects):
    """Its own recipe: two groups, weight decay on all parameters, gradients clipped to 0.1 in all."""
    wrapped = DistributedDataParallel(original)
    backbone = [p for n, p in original.named_parameters() if "backbone" in n and p.requires_grad]
    rest = [p for n, p in original.named_parameters() if "backbone" not in n and p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": rest}, {"params": backbone, "lr": LR_OF_BACKBONE}], LR, weight_decay=1e-4)
    labels, boxes, masks = truth(rank, objects, SIZES[rank])
    targets = original_targets([labels.tolist()], [boxes], [masks])
    losses = criterion(run_original(wrapped, [sample_image(*SIZES[rank], seed=rank)]), targets)
    losses = {key: losses[key] * weight for key, weight in criterion.weight_dict.items() if key in losses}
    sum(losses.values()).backward()
    torch.nn.utils.clip_grad_norm_(original.parameters(), 0.1)
    optimizer.step()
    return losses


def step_of_ours(model, cfg, rank, objects):
    """Through the trainer's step."""
    height, width = SIZES[rank]
    labels, boxes, masks = truth(rank, objects, SIZES[rank])
    instances = Instances((height, width), gt_classes=labels, gt_masks=BitMasks(masks))
    pixels = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
    instances.gt_boxes = Boxes(pixels)
    image = sample_image(height, width, seed=rank).mul(model.pixel_std).add(model.pixel_mean).mul(255)
    losses = {}
    model.register_forward_hook(lambda *args: losses.update(args[2]))
    step = build_step(cfg, model, [[{"image": image, "instances": instances}]], build_optimizer(cfg, model))
    with EventStorage():
        step.iter = 0
        step.run_step()
    return losses


def under_our_names(original):
    return to_detectron2(original_checkpoint(original)["model"]).state


@torch.no_grad()
def assert_equal_steps(original, ours):
    """Gradients, which are clipped, and weights after a step.

    AdamW's first step has the sign of the gradient, however small that is. So weights are compared where the gradient
    is more than rounding; elsewhere they differ by two steps at most.
    """
    weights = under_our_names(original)
    for parameter in original.parameters():
        parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    gradients = under_our_names(original)
    trained = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    largest = max(p.grad.abs().max() for p in trained.values())
    assert largest > 0
    for name, parameter in trained.items():
        rate = LR_OF_BACKBONE if name.startswith("backbone") else LR
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=3e-5 * float(largest), msg=name)
        difference = (parameter - weights[name]).abs() / rate
        assert difference.max() < 2.01, name
        assert difference[parameter.grad.abs() > 1e-4 * largest].lt(0.1).all(), name


def run_a_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(minutes=10)
    )
    for masks, objects in CASES:
        original, criterion, ours, cfg = build(masks)
        expected = step_of_the_original(original, criterion, rank, objects[rank])
        losses = step_of_ours(ours, cfg, rank, objects[rank])
        assert losses.keys() == expected.keys(), (masks, objects)
        assert ("loss_mask" in losses) == masks
        for key, loss in losses.items():
            assert bool(loss > 0) == (objects[rank] > 0 or key.startswith("loss_ce")), (masks, objects, key)
            torch.testing.assert_close(loss, expected[key], rtol=1e-5, atol=0, msg=f"{masks} {objects} {key}")
        assert_equal_steps(original, ours)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_step_of_two_ranks_is_the_originals(tmp_path):
    """Boxes and masks; more objects on one rank, all on one, and none at all."""
    torch.multiprocessing.spawn(run_a_rank, args=(str(tmp_path),), nprocs=2)
