"""A training step on two ranks, against one process that has the images of both."""

import datetime

import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from detr.engine.defaults import load_config
from detr.engine.solver import build_optimizer
from detr.engine.training_step import TrainingStep
from detr.modeling.matcher import Targets
from detr.modeling.outputs import TrainingOutputs
from tests.conftest import QUICKSTART, TINY, as_opts, make_input, with_masks
from tests.modeling.training_parts import NO_NOISE, PARTS

BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0], [5.0, 30.0, 120.0, 90.0]]
LABELS = [1, 3, 0]
# Statistics of a batch would differ between one image and two.
FROZEN_NORMS = {"MODEL.RESNETS.NORM": "FrozenBN"}
MASKS = {**FROZEN_NORMS, "MODEL.MASK_ON": True}
MEAN_OF_ALL = {"MODEL.DETR.CLASS_LOSS_MEAN": "all"}
MODELS = {
    "boxes": FROZEN_NORMS,
    "boxes, mean of all": {**FROZEN_NORMS, **MEAN_OF_ALL},
    "masks": MASKS,
    "masks on a frozen box model": {**MASKS, "MODEL.DETR.FREEZE_DETR": True},
    "masks, recomputed": {**MASKS, "MODEL.DETR.ACTIVATION_CHECKPOINT": ("backbone", "transformer", "mask_head")},
    # Noise would differ between the ranks and the one process, and the number of copies depends on the other images.
    **{
        f"masks and {part}": {**MASKS, **settings, **NO_NOISE, "MODEL.DETR.DENOISING.COPIES": 1}
        for part, settings in PARTS.items()
    },
    "masks and all, mean of all": {
        **MASKS,
        **PARTS["all"],
        **NO_NOISE,
        **MEAN_OF_ALL,
        "MODEL.DETR.DENOISING.COPIES": 1,
    },
}
IN_PARTS = "masks and all, mean of all"
OBJECTS = [(3, 1), (0, 2), (0, 0)]  # of the two images
CASES = [(model, objects) for model in MODELS for objects in OBJECTS]


def config(name):
    return load_config(str(QUICKSTART), as_opts({**TINY, **MODELS[name]}))


def build(name):
    torch.manual_seed(0)
    return build_model(config(name)).train()


def image_of(rank, count):
    return with_masks(make_input(BOXES[:count], LABELS[:count], (64, 96), seed=rank))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def images_in_parts():
    return [image_of(i, count) for i, count in enumerate((3, 0, 1, 2))]


def take_step(model, batch, parts):
    """Leaves the gradients."""
    step = TrainingStep(model, [batch], torch.optim.SGD(model.parameters(), lr=0.0), parts=parts)
    with EventStorage():
        step.iter = 0
        step.run_step()


def count_exchange(exchanges, bucket):
    """Of gradients between the ranks, which are sent in several buckets."""
    if bucket.is_last():
        exchanges.append(bucket.index())
    return allreduce_hook(None, bucket)


def step_of_a_rank(rank: int, folder: str) -> None:
    """Writes for every case the gradients, the parameters after a step of the optimizer, and the losses."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    results = []
    for name, objects in CASES:
        model = build(name)
        wrapped = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
        optimizer = build_optimizer(config(name), model)
        with EventStorage() as storage:
            losses = wrapped([image_of(rank, objects[rank])])
            assert {"class_error", "cardinality_error"} <= storage.latest().keys()
        sum(losses.values()).backward()
        found = gradients(model)
        optimizer.step()
        losses = {name: loss.detach() for name, loss in losses.items()}
        results.append((found, {name: p.detach() for name, p in model.named_parameters()}, losses))
    torch.save(results, f"{folder}/{rank}.pth")
    model = build(IN_PARTS)
    wrapped = create_ddp_model(model, broadcast_buffers=False, device_ids=None)
    exchanges = []
    wrapped.register_comm_hook(exchanges, count_exchange)
    take_step(wrapped, images_in_parts()[2 * rank : 2 * rank + 2], parts=2)
    assert len(exchanges) == 1
    torch.save(gradients(model), f"{folder}/parts_{rank}.pth")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(spawned):
    """For each rank, and each of the cases, gradients, parameters and losses."""
    return [torch.load(spawned / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def spawned(tmp_path_factory):
    """The folder that the ranks have written to."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(step_of_a_rank, args=(str(folder),), nprocs=2)
    return folder


def losses_of_one_process(model, objects):
    """Those of the batch of both images; by default a rank's ``loss_ce`` is a weighted mean over its own queries."""
    batch = [image_of(rank, count) for rank, count in enumerate(objects)]
    images = model.preprocess(batch)
    targets = model.targets(batch, tuple(images.tensor.shape[-2:]))
    more = [] if model.training_queries is None else [model.training_queries(model.query_embed.weight, targets)]
    outputs = model.forward_network(images, not model.freeze_detr, *more)
    losses = model.losses(outputs, targets)
    if model.criterion.class_loss_mean == "all":
        return sum(losses.values())
    per_rank = [classification_of_rank(model.criterion, outputs, targets, rank) for rank in range(2)]
    others = [value for name, value in losses.items() if not name.startswith("loss_ce")]
    return sum(others) + torch.stack(per_rank).mean()


def classification_of_rank(criterion, outputs, targets, rank):
    """The sum of all layers' ``loss_ce`` and ``loss_ce_dn``."""
    labels, boxes = (x.split(targets.sizes)[rank] for x in (targets.labels, targets.boxes))
    of_rank, groups, noised = Targets(labels, boxes, [len(labels)]), 1, None
    all_logits, all_boxes = outputs.logits, outputs.boxes
    if isinstance(outputs, TrainingOutputs):
        all_logits, all_boxes = outputs.all_logits, outputs.all_boxes
        groups, noised = outputs.queries.groups, outputs.queries.noised
    queries = groups * outputs.logits.shape[2]
    logits = all_logits[:, rank : rank + 1]
    losses, _ = criterion(logits[:, :, :queries], all_boxes[:, rank : rank + 1, :queries], of_rank, groups)
    total = sum(value for name, value in losses.items() if name.startswith("loss_ce"))
    if noised is None or not len(labels):
        return total
    answers = torch.full_like(noised.image, criterion.num_classes)
    answers[noised.positive] = targets.labels[noised.target]
    here = noised.image == rank
    rows = logits[:, 0, queries:][:, noised.query[here]]
    return total + sum(F.cross_entropy(x, answers[here], criterion.class_weight) for x in rows)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name", "objects"), [(i, *case) for i, case in enumerate(CASES)], ids=str)
def test_gradients_of_two_ranks_are_those_of_one_process_with_both_images(ranks, case, name, objects):
    model = build(name)
    losses_of_one_process(model, objects).backward()
    expected = gradients(model)
    assert expected.keys() == {key for key, p in model.named_parameters() if p.requires_grad}
    largest = max(gradient.abs().max() for gradient in expected.values())
    assert (largest > 0) == (sum(objects) > 0 or not model.freeze_detr)
    for rank in ranks:
        found = rank[case][0]
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6 * float(largest), msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)))
def test_a_step_leaves_both_ranks_with_the_same_parameters(ranks, case):
    (_, first, _), (_, second, _) = (rank[case] for rank in ranks)
    initial = dict(build(CASES[case][0]).named_parameters())
    assert first.keys() == second.keys() == initial.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], initial[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("case", [i for i, (name, _) in enumerate(CASES) if "mean of all" in name])
def test_the_mean_of_the_ranks_losses_is_that_of_one_process_where_the_mean_is_over_all(ranks, case):
    name, objects = CASES[case]
    losses = build(name)([image_of(rank, count) for rank, count in enumerate(objects)])
    first, second = (rank[case][2] for rank in ranks)
    assert losses.keys() == first.keys() == second.keys()
    for key, loss in losses.items():
        torch.testing.assert_close((first[key] + second[key]) / 2, loss.detach(), rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("case", [i for i, (name, _) in enumerate(CASES) if "mean of all" in name])
def test_a_step_leaves_the_parameters_of_one_process_where_the_mean_is_over_all(ranks, case):
    name, objects = CASES[case]
    model = build(name)
    optimizer = build_optimizer(config(name), model)
    sum(model([image_of(rank, count) for rank, count in enumerate(objects)]).values()).backward()
    optimizer.step()
    largest = max(p.grad.abs().max() for p in model.parameters() if p.grad is not None)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for key, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        # AdamW's first step has the sign of the gradient, also of one that is nothing but rounding.
        difference = (ranks[0][case][1][key] - parameter.detach()).abs() / rates[id(parameter)]
        assert difference.max() < 2.01, key
        assert difference[parameter.grad.abs() > 1e-4 * largest].lt(0.1).all(), key


@pytest.mark.slow
def test_two_ranks_with_two_parts_each_are_one_process_with_four_images(spawned):
    model = build(IN_PARTS)
    take_step(model, images_in_parts(), parts=1)
    expected = gradients(model)
    largest = float(max(gradient.abs().max() for gradient in expected.values()))
    for rank in range(2):
        found = torch.load(spawned / f"parts_{rank}.pth", weights_only=True)
        assert found.keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=2e-6 * largest, msg=key)
