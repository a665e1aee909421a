import pytest
import torch
from detectron2.modeling import build_model

from detr.engine.solver import build_optimizer, check_batch_size, keep_epochs, schedule_in_iterations
from detr.engine.trainer import Trainer
from detr.errors import InputError


def scheduled(tiny_config, images, **solver):
    cfg = tiny_config({f"SOLVER.{key}": value for key, value in solver.items()})
    cfg.freeze()
    out = schedule_in_iterations(cfg, images)
    return out.SOLVER.MAX_ITER, tuple(out.SOLVER.STEPS)


def test_epochs_of_coco_are_the_iterations_of_the_published_schedule(tiny_config):
    """118,287 images in batches of 64: 1848 iterations an epoch, the wrapper's 554,400 and 369,600."""
    assert scheduled(tiny_config, 118287, IMS_PER_BATCH=64, MAX_EPOCHS=300, DROP_EPOCHS=(200,)) == (
        554400,
        (369600,),
    )


def test_a_data_set_smaller_than_the_batch_has_one_iteration_an_epoch(tiny_config):
    assert scheduled(tiny_config, 5, IMS_PER_BATCH=16, MAX_EPOCHS=7, DROP_EPOCHS=(3, 5)) == (7, (3, 5))


def test_iterations_still_work(tiny_config):
    assert scheduled(tiny_config, 5, MAX_EPOCHS=0, DROP_EPOCHS=(), MAX_ITER=70, STEPS=(50,)) == (70, (50,))


@pytest.mark.parametrize("drops", [(5,), (0,), (2, 9)])
def test_a_drop_outside_the_training_is_reported(tiny_config, drops):
    with pytest.raises(InputError, match=r"must lie between 0 and SOLVER\.MAX_EPOCHS 5"):
        scheduled(tiny_config, 100, MAX_EPOCHS=5, DROP_EPOCHS=drops)


SCALED = {"IMS_PER_BATCH": 16, "REFERENCE_WORLD_SIZE": 8, "BASE_LR": 1e-4, "WARMUP_ITERS": 1000, "MAX_EPOCHS": 300,
          "DROP_EPOCHS": (200,), "CHECKPOINT_EPOCHS": 10}  # fmt: skip


def scaled(tiny_config, ranks, settings):
    """As a training on so many ranks has it, of COCO's 118,287 images."""
    cfg = tiny_config({f"SOLVER.{key}": value for key, value in settings.items()})
    cfg.TEST.EVAL_EPOCHS = 5
    cfg.freeze()
    return keep_epochs(cfg, Trainer.auto_scale_workers(schedule_in_iterations(cfg, 118287), ranks), 118287)


def test_a_reference_world_size_scales_rates_and_keeps_epochs(tiny_config):
    """On 2 ranks batches of 4: 118,287 // 4 = 29,571 iterations an epoch; 4 * (118,287 // 16) would be 29,568."""
    cfg = scaled(tiny_config, 2, SCALED)
    solver = cfg.SOLVER
    rate = solver.BASE_LR
    assert (solver.IMS_PER_BATCH, solver.WARMUP_ITERS) == (4, 4000)
    assert rate == pytest.approx(2.5e-5)
    assert (solver.MAX_ITER, solver.STEPS) == (29571 * 300, (29571 * 200,))
    assert (solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (29571 * 10, 29571 * 5)
    assert solver.REFERENCE_WORLD_SIZE == 2
    assert cfg.is_frozen()
    again = keep_epochs(cfg, Trainer.auto_scale_workers(schedule_in_iterations(cfg, 118287), 2), 118287)
    assert again.SOLVER.MAX_ITER == solver.MAX_ITER  # of what is scaled already


def test_iterations_scale_as_in_detectron2_beside_periods_in_epochs(tiny_config):
    settings = {key: value for key, value in SCALED.items() if "EPOCHS" not in key} | {"CHECKPOINT_EPOCHS": 1}
    cfg = scaled(tiny_config, 16, {**settings, "MAX_ITER": 1000, "STEPS": (600,)})
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (500, (300,))
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 118287 // 32
    assert scaled(tiny_config, 8, SCALED).SOLVER.MAX_ITER == 118287 // 16 * 300  # nothing to scale


def test_a_trainer_scales(shapes_root, run_config, writers_are_closed):
    """On one process, from two: 48 images in batches of 3 instead of 6."""
    settings = {"SOLVER.IMS_PER_BATCH": 6, "SOLVER.REFERENCE_WORLD_SIZE": 2, "SOLVER.MAX_EPOCHS": 2}
    trainer = Trainer(run_config({**settings, "SOLVER.ACCUMULATION_STEPS": 3}))
    assert (trainer.max_iter, trainer.cfg.SOLVER.IMS_PER_BATCH) == (2 * 16, 3)
    assert trainer.optimizer.param_groups[-1]["initial_lr"] == pytest.approx(0.0005)
    with pytest.raises(
        InputError, match=r"ACCUMULATION_STEPS is 2: it must be .* divide .* 3 \(SOLVER.IMS_PER_BATCH 6 on 2"
    ):
        check_batch_size(run_config({**settings, "SOLVER.ACCUMULATION_STEPS": 2}))


def test_a_negative_length_is_reported(tiny_config):
    with pytest.raises(InputError, match=r"SOLVER\.MAX_ITER is -5: it must be at least 0"):
        scheduled(tiny_config, 5, MAX_EPOCHS=0, DROP_EPOCHS=(), MAX_ITER=-5)


def test_groups_have_their_learning_rate_and_all_decay(tiny_config):
    cfg = tiny_config({"SOLVER.BACKBONE_MULTIPLIER": 0.1, "SOLVER.BASE_LR": 2e-4, "SOLVER.WEIGHT_DECAY": 3e-4})
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        group = group_of.pop(id(parameter))
        assert group["lr"] == pytest.approx(2e-5 if name.startswith("backbone.") else 2e-4), name
        assert group["weight_decay"] == 3e-4, name  # norms and biases too
    assert not group_of


def test_the_whole_gradient_is_clipped_before_the_step(tiny_config):
    """Plain SGD moves by lr * gradient, so that the move tells the gradient's norm."""
    cfg = tiny_config({"SOLVER.OPTIMIZER": "SGD", "SOLVER.BASE_LR": 1.0, "SOLVER.WEIGHT_DECAY": 0.0,
                       "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.1})  # fmt: skip
    model = torch.nn.Linear(3, 2)
    optimizer = build_optimizer(cfg, model)
    for scale, expected in ((100.0, 0.1), (1e-4, 1e-4)):
        before = torch.nn.utils.parameters_to_vector(model.parameters())
        gradient = torch.full_like(before, scale / len(before) ** 0.5)
        for parameter, piece in zip(model.parameters(), gradient.split([6, 2]), strict=True):
            parameter.grad = piece.view_as(parameter).clone()
            optimizer.state[parameter].clear()  # no momentum from before
        optimizer.step()
        move = torch.nn.utils.parameters_to_vector(model.parameters()) - before
        assert move.norm().item() == pytest.approx(expected, rel=1e-3)


def test_an_unknown_optimizer_is_reported(tiny_config):
    with pytest.raises(InputError, match="OPTIMIZER is 'ADAM': it must be one of ADAMW, SGD"):
        build_optimizer(tiny_config({"SOLVER.OPTIMIZER": "ADAM"}), torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"BASE_LR is -1\.0: a learning rate is at least 0"):
        build_optimizer(tiny_config({"SOLVER.BASE_LR": -1.0}), torch.nn.Linear(1, 1))
    with pytest.raises(InputError, match=r"CLIP_TYPE is 'x': it must be one of full_model, value, norm"):
        build_optimizer(tiny_config({"SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "x"}), torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"LR_SCHEDULER_NAME": "x"}, "LR_SCHEDULER_NAME is 'x': it must be one of WarmupMultiStepLR, WarmupCosineLR, "),
        ({"WARMUP_METHOD": "x"}, "WARMUP_METHOD is 'x': it must be one of linear, constant"),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR": 0.0}, r"BASE_LR is 0\.0 and SOLVER\.BASE_LR_END is 0\.0: "),
        ({"LR_SCHEDULER_NAME": "WarmupCosineLR", "BASE_LR_END": 1.0}, r"BASE_LR_END is 1\.0: WarmupCosineLR goes down"),
    ],
    ids=str,
)
def test_a_schedule_that_detectron2_cannot_build_is_one_line(tiny_config, settings, message):
    cfg = tiny_config({f"SOLVER.{key}": value for key, value in settings.items()})
    optimizer = torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=1.0)
    with pytest.raises(InputError, match=message):
        Trainer.build_lr_scheduler(cfg, optimizer)


@pytest.mark.parametrize(("amp", "fused"), [((), True), (("bfloat16",), True), (("float16",), False)])
def test_the_optimizer_is_fused_but_where_it_would_unscale_gradients_itself(tiny_config, amp, fused):
    cfg = tiny_config({"SOLVER.AMP.ENABLED": bool(amp)})
    cfg.SOLVER.AMP.DTYPE = amp[0] if amp else cfg.SOLVER.AMP.DTYPE
    optimizer = build_optimizer(cfg, torch.nn.Linear(2, 1))
    assert [group["fused"] for group in optimizer.param_groups] == [fused]
