"""Precision and parts of a training step: against Detectron2's trainer, and against the whole batch at once."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage
from torch import nn

from detr.engine.solver import build_adamw, build_optimizer, clip_full_model
from detr.engine.trainer import Trainer
from detr.engine.training_step import TrainingStep
from detr.errors import InputError
from detr.modeling.meta_arch import Detr
from tests.conftest import TRAINING_QUERIES, make_input, with_masks
from tests.modeling.training_parts import NO_NOISE, PARTS

BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 90.0, 60.0], [5.0, 30.0, 90.0, 62.0]]
STEADY = {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.DETR.DROPOUT": 0.0}
MASKS = {**STEADY, "MODEL.MASK_ON": True}
MODELS = {
    "boxes": STEADY,
    "more objects than queries": {**STEADY, "MODEL.DETR.NUM_OBJECT_QUERIES": 2},
    "masks": MASKS,
    # Without noise, and with as many copies in each part as in the whole, the same is computed.
    **{f"masks and {part}": {**MASKS, **PARTS[part], **NO_NOISE, "MODEL.DETR.DENOISING.COPIES": 1} for part in PARTS},
}


def batch(objects):
    return [with_masks(make_input(BOXES[:n], [1, 3, 0][:n], (64, 96), seed=i)) for i, n in enumerate(objects)]


def run(step, steps=1):
    """The losses of the last step; ``step`` is in a training loop of that length."""
    with EventStorage() as storage:
        for step.iter in range(steps):
            step.run_step()
        return {name: value for name, (value, _) in storage.latest().items() if "loss" in name}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def losses_and_gradients(cfg, data, **options):
    model = build(cfg)
    losses = run(TrainingStep(model, [data], torch.optim.SGD(model.parameters(), lr=0.0), **options))
    return losses, gradients(model)


def assert_near(found, expected):
    assert found.keys() == expected.keys()
    largest = max(abs(torch.as_tensor(x)).max() for x in expected.values())
    for key, x in expected.items():
        torch.testing.assert_close(found[key], x, rtol=1e-4, atol=2e-6 * float(largest), msg=key)


@pytest.mark.parametrize("settings", [{}, {**TRAINING_QUERIES, "MODEL.MASK_ON": True}], ids=["boxes", "all"])
def test_by_default_a_training_is_detectron2s_to_the_bit(settings, tiny_config):
    results = []
    for kind in (SimpleTrainer, TrainingStep):
        cfg = tiny_config(settings)
        model = build(cfg)
        loader = [batch(objects) for objects in [(3, 1), (0, 2), (0, 0)]]
        results.append(run(kind(model, loader, build_optimizer(cfg, model), zero_grad_before_forward=True), steps=3))
        results.append(model.state_dict())
    expected, weights, losses, others = results
    assert losses == expected
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())


CASES = [(name, (3, 0, 1, 2), 2) for name in MODELS]
CASES += [(name, objects, 4) for name in ("boxes", "masks and all") for objects in [(0, 0, 0, 3), (0, 0, 0, 0)]]


@pytest.mark.parametrize(("name", "objects", "parts"), CASES, ids=str)
def test_parts_have_the_losses_and_gradients_of_the_whole_batch(name, objects, parts, tiny_config):
    cfg, data = tiny_config(MODELS[name]), batch(objects)
    losses, expected = losses_and_gradients(cfg, data)
    in_parts, found = losses_and_gradients(cfg, data, parts=parts)
    assert_near(in_parts, losses)
    assert_near(found, expected)


def test_parts_choose_their_copies_and_count_all_of_them(tiny_config):
    """4 copies of 1 object, where the whole batch has 2 of each of the 3 others: the mean is over what there is."""
    settings = {**STEADY, "MODEL.DETR.DENOISING.ENABLED": True, "MODEL.DETR.DENOISING.COPIES": 4}
    cfg, data = tiny_config({**settings, **NO_NOISE}), batch((3, 1))
    losses, _ = losses_and_gradients(cfg, data, parts=2)
    model = build(cfg).train()
    sums = []
    for x in data:
        with EventStorage():
            sums.append({name: float(loss.detach()) for name, loss in model([x]).items()})
    # Of each part alone: the sums over 4 copies divided by 4 times its objects.
    expected = (3 * sums[0]["loss_bbox_dn"] + sums[1]["loss_bbox_dn"]) / 4
    assert losses["loss_bbox_dn"] == pytest.approx(expected, rel=1e-4)
    expected = (12 * sums[0]["loss_ce_dn"] + 4 * sums[1]["loss_ce_dn"]) / 16
    assert losses["loss_ce_dn"] == pytest.approx(expected, rel=1e-4)


@META_ARCH_REGISTRY.register()
class DetrWithRegularization(Detr):
    def forward(self, batched_inputs):
        losses = super().forward(batched_inputs)
        if self.training:
            losses["loss_own"] = self.class_embed.weight.square().sum()
        return losses


def test_a_loss_of_a_subclass_is_the_mean_of_its_parts(tiny_config):
    cfg, data = tiny_config({**STEADY, "MODEL.META_ARCHITECTURE": "DetrWithRegularization"}), batch((3, 0, 1, 2))
    for found, expected in zip(losses_and_gradients(cfg, data, parts=2), losses_and_gradients(cfg, data), strict=True):
        assert_near(found, expected)


class Linear(nn.Linear):
    """A model of somebody else's, whose loss is one tensor."""

    def forward(self, batched_inputs):
        return super().forward(torch.stack(batched_inputs)).square().mean()


def test_of_another_model_the_mean_of_the_parts_counts():
    torch.manual_seed(0)
    model, data = Linear(3, 2), list(torch.randn(6, 3))
    model(data).backward()
    expected = gradients(model)
    run(TrainingStep(model, [data], torch.optim.SGD(model.parameters(), lr=0.0), parts=3))
    assert_near(gradients(model), expected)


@pytest.mark.parametrize("loader", [[[0] * 5], [[]], [{"images": 0}]], ids=str)
def test_what_cannot_be_computed_in_equal_parts_is_one_line(loader):
    model = Linear(3, 2)
    step = TrainingStep(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), parts=2)
    with pytest.raises(InputError, match=r"cannot be computed in SOLVER\.ACCUMULATION_STEPS 2 equal parts"):
        run(step)


@pytest.mark.parametrize("fused", [False, True], ids=["single", "fused"])
def test_gradients_are_clipped_after_they_are_unscaled(fused):
    """A scale is a power of two, so that the weights are the same to the bit."""
    weights = []
    for scale in (None, 2.0**10):
        torch.manual_seed(0)
        model, data = Linear(3, 2), list(torch.randn(6, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
        clip_full_model(optimizer, max_norm=0.1)
        scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        run(TrainingStep(model, [data] * 3, optimizer, grad_scaler=scaler, parts=2), steps=3)
        weights.append(model.weight.detach())
    assert torch.equal(*weights)


def test_a_step_whose_scaled_gradients_overflow_is_left_out():
    model, data = Linear(3, 2), list(100 * torch.ones(6, 3))
    optimizer = build_adamw([{"params": list(model.parameters())}], lr=0.1, weight_decay=0.0, amp=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before, step = model.weight.detach().clone(), TrainingStep(model, [data] * 2, optimizer, grad_scaler=scaler)
    run(step)
    assert torch.equal(model.weight, before)
    assert scaler.get_scale() == 2.0**126
    again = TrainingStep(model, [data], optimizer, grad_scaler=torch.amp.GradScaler("cpu"))
    again.load_state_dict(step.state_dict())
    assert again.grad_scaler.get_scale() == 2.0**126


def test_bfloat16_on_a_cpu_computes_products_and_not_losses(tiny_config):
    cfg, data = tiny_config(MASKS), batch((3, 1))
    losses, expected = losses_and_gradients(cfg, data)
    seen = []
    model = build(cfg)
    model.transformer.register_forward_hook(lambda *args: seen.append(args[2][0].dtype))
    model.criterion.register_forward_hook(lambda module, args, output: seen.append(output[0]["loss_ce"].dtype))
    step = TrainingStep(model, [data], torch.optim.SGD(model.parameters(), lr=0.0), dtype=torch.bfloat16)
    found = run(step)
    assert seen[1] == torch.float32
    assert found != losses
    for name, loss in losses.items():
        assert found[name] == pytest.approx(loss, rel=0.1), name
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert "grad_scaler" not in step.state_dict()
    cosine = [
        torch.cosine_similarity(p.grad.flatten(), expected[name].flatten(), dim=0)
        for name, p in model.named_parameters()
        if name in expected
    ]
    assert torch.stack(cosine).median() > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SOLVER.AMP.ENABLED": True}, r"float16 needs a GPU: set SOLVER\.AMP\.DTYPE bfloat16"),
        ({"SOLVER.AMP.DTYPE": "half"}, r"SOLVER\.AMP\.DTYPE is 'half': it must be one of float16, bfloat16"),
        (
            {"SOLVER.ACCUMULATION_STEPS": 3},
            r"ACCUMULATION_STEPS is 3: it must be .* divide .* 4 \(SOLVER\.IMS_PER_BATCH 4",
        ),
        ({"SOLVER.ACCUMULATION_STEPS": 0}, r"ACCUMULATION_STEPS is 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(settings, message, run_config):
    with pytest.raises(InputError, match=message):
        Trainer(run_config(settings))


def test_the_keys_reach_the_step(shapes_root, run_config):
    cfg = run_config({"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16", "SOLVER.ACCUMULATION_STEPS": 2})
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    step = trainer._trainer
    assert (step.dtype, step.grad_scaler, step.parts) == (torch.bfloat16, None, 2)
    sizes = []

    def count(model, args):
        if model.training:
            sizes.append(len(args[0]))

    trainer.model.register_forward_pre_hook(count)
    trainer.train()
    assert sizes == [2] * 4
