"""What only a GPU shows: results equal to the CPU's, half precision, and how often the host waits for the device.

tests/modeling/test_fake_cuda.py finds waits and mixed devices on any machine; its cases run here too.
"""

import contextlib
import copy
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch.overrides import TorchFunctionMode

from detr.data.pinning import pinnable
from detr.engine.solver import build_optimizer
from tests.conftest import QUICKSTART, ROOT, TINY, make_input, with_masks
from tests.engine.test_training import TRAINING, iterations, train
from tests.fake_cuda import place
from tests.lively import assert_same, build_lively
from tests.modeling import cuda_cases
from tests.modeling.training_parts import NO_NOISE, PARTS, build_pair

PANOPTIC = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"
MODELS = {
    "boxes": {},
    "masks": {"MODEL.MASK_ON": True},
    "masks, frozen norms": {"MODEL.MASK_ON": True, "MODEL.RESNETS.NORM": "FrozenBN"},
    # Each device draws other random numbers.
    **{f"masks and {part}": {"MODEL.MASK_ON": True, **settings, **NO_NOISE} for part, settings in PARTS.items()},
}
SCALE = 8.0  # of the loss in half precision
WAIT = "called a synchronizing CUDA operation"  # torch's words

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]


@pytest.fixture(autouse=True)
def _full_precision() -> Iterator[None]:
    """TF32 convolutions differ from the CPU's in the third digit."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """Inside, waiting for the device is a RuntimeError."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WaitsAllowed(TorchFunctionMode):
    """Inside ``no_waits``, functions of torch that are called in these places of detr/ may wait."""

    def __init__(self, places: Collection[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if place() not in self.places:
            return func(*args, **(kwargs or {}))
        torch.cuda.set_sync_debug_mode("default")
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch.cuda.set_sync_debug_mode("error")


@contextlib.contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Afterwards, the list holds where the host waited for the device."""
    where: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield where
        finally:
            torch.cuda.set_sync_debug_mode("default")
    where.extend(f"{x.filename}:{x.lineno}" for x in caught if WAIT in str(x.message))


def training(tiny_config, name, objects=(2, 1)):
    """A model in training on the GPU, its optimizer, and a batch. Lively, so that rounding changes no match."""
    cfg = tiny_config(MODELS[name])
    model = build_pair(tiny_config, MODELS[name])[1].to("cuda")
    batch = [
        with_masks(make_input(cuda_cases.BOXES[:count], [1, 3][:count], size, seed))
        for seed, (count, size) in enumerate(zip(objects, cuda_cases.SIZES, strict=True))
    ]
    return model, build_optimizer(cfg, model), batch


def step(model, optimizer, batch):
    optimizer.zero_grad()
    losses = model(batch)
    sum(losses.values()).backward()
    optimizer.step()


@pytest.mark.parametrize("config", [QUICKSTART, PANOPTIC], ids=["boxes", "masks and panoptic"])
def test_inference_equals_the_cpus(config):
    expected = build_lively(config, {**TINY, "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35})
    model = copy.deepcopy(expected).to("cuda")
    for sizes in ([(96, 128)], [(20, 150)], [(96, 128), (131, 97), (33, 200)]):
        num_segments = assert_same(model, expected, sizes, tolerance=2e-3)
        assert (num_segments > 0) == (config == PANOPTIC)
    (output,) = model([make_input([], [])])
    assert output["instances"].scores.is_cuda
    if config == PANOPTIC:
        assert output["instances"].pred_masks.is_cuda
        assert output["panoptic_seg"][0].is_cuda


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("objects", [(2, 1), (0, 2), (0, 0)], ids=str)
def test_losses_and_gradients_equal_the_cpus(tiny_config, name, objects):
    model, _, batch = training(tiny_config, name, objects)
    reference = copy.deepcopy(model).to("cpu")
    losses, expected = model(batch), reference(batch)
    assert losses.keys() == expected.keys()
    for key, loss in losses.items():
        assert loss.is_cuda
        torch.testing.assert_close(loss.cpu(), expected[key], rtol=1e-3, atol=1e-4, msg=key)
    for of_model in (losses, expected):
        sum(of_model.values()).backward()
    largest = max(p.grad.abs().max() for p in reference.parameters() if p.requires_grad)
    for (key, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if not theirs.requires_grad:
            continue
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=0.02, atol=float(1e-3 * largest), msg=key)


@pytest.mark.parametrize("name", cuda_cases.CASES)
def test_training_and_inference_wait_in_the_known_places_only(name):
    cfg, model = cuda_cases.build(name)
    optimizer = build_optimizer(cfg, model.to("cuda").train())
    batch = cuda_cases.batch()
    cuda_cases.step(model, optimizer, batch)  # libraries initialize themselves
    with EventStorage(), no_waits(), WaitsAllowed(cuda_cases.TRAINING):
        cuda_cases.step(model, optimizer, batch)
    model.eval()(batch)
    with no_waits(), WaitsAllowed(cuda_cases.INFERENCE.get(name, ())):
        model(batch)


@pytest.mark.parametrize("name", MODELS)
def test_everything_but_matching_and_metrics_runs_without_waiting(tiny_config, name):
    """From the batch on the host to the gradients; the matches are given."""
    model, optimizer, batch = training(tiny_config, name)
    step(model, optimizer, batch)  # libraries initialize themselves
    optimizer.zero_grad()
    with no_waits():
        images = model.preprocess(batch)
        targets = model.targets(batch, tuple(images.tensor.shape[-2:]))
        more = [] if model.training_queries is None else [model.training_queries(model.query_embed.weight, targets)]
        outputs = model.forward_network(images, True, *more)
    matches = model.criterion.matcher(outputs.logits, outputs.boxes, targets)
    with no_waits():
        losses = {"loss_ce": model.criterion.classification_loss(outputs.logits, targets, matches)}
        losses |= model.criterion.box_losses(outputs.boxes, targets, matches)
        if model.mask_head is not None:
            last = matches.of_last_layer(len(outputs.logits))
            masks = model.mask_head(outputs.mask_features, last.image, last.query)
            losses |= model.criterion.mask_losses(masks, targets, last)
        if more and more[0].noised is not None:
            of_noised = (x[:, :, more[0].num_objects :] for x in (outputs.all_logits, outputs.all_boxes))
            losses |= model.criterion.denoising_losses(*of_noised, targets, more[0].noised)
        torch.stack([loss.sum() for loss in losses.values()]).sum().backward()
        optimizer.step()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_waits_once_for_the_matching_cost_and_once_for_metrics(tiny_config, name):
    model, optimizer, batch = training(tiny_config, name)
    step(model, optimizer, batch)
    with counted_waits() as where:
        step(model, optimizer, batch)
    assert [place.rpartition("/")[2].partition(":")[0] for place in where] == ["matcher.py"], where
    with EventStorage(), counted_waits() as where:
        step(model, optimizer, batch)
    assert [place.rpartition("/")[2].partition(":")[0] for place in where] == ["matcher.py", "meta_arch.py"], where


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("config", [QUICKSTART, PANOPTIC], ids=["boxes", "masks and panoptic"])
def test_a_compiled_network_gives_the_same(config, mode):
    expected = build_lively(config, {**TINY, "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35})
    model = copy.deepcopy(expected).to("cuda")
    model.compile_mode = mode
    for sizes in ([(96, 128)], [(96, 128), (131, 97)], [(96, 128)]):
        for _ in range(3):  # CUDA graphs are recorded in the second call
            assert_same(model, expected, sizes, tolerance=2e-3)
    images = model.preprocess([make_input([], [])])
    with torch.no_grad():
        first = model.forward_network(images, return_intermediate=False)
        kept = first.logits.clone()
        model.query_embed.weight.add_(1)
        second = model.forward_network(images, return_intermediate=False)
    assert torch.equal(first.logits, kept)
    assert not torch.equal(second.logits, kept)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_training_steps_give_the_same(tiny_config, mode):
    model, _, batch = training(tiny_config, "masks")
    reference = copy.deepcopy(model)
    model.compile_mode = mode
    for _ in range(3):
        for network in (model, reference):
            network.zero_grad()
            sum(network(batch).values()).backward()
    for (key, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.02, atol=1e-3, msg=key)


def test_pinned_batches_are_copied_without_waiting(tiny_config):
    model, _, batch = training(tiny_config, "masks")
    pinned = pinnable(list, batch).pin_memory()
    truth = pinned[0]["instances"]
    assert pinned[0]["image"].is_pinned()
    assert truth.gt_masks.tensor.is_pinned()
    model.preprocess(pinned)  # libraries initialize themselves
    with no_waits():
        images = model.preprocess(pinned)
        model.targets(pinned, tuple(images.tensor.shape[-2:]))


@pytest.mark.parametrize("method", ["cpu", "tolist", "nonzero", "__bool__"])
def test_waiting_is_noticed(method):
    x = torch.ones(1, device="cuda")
    with counted_waits() as where:
        getattr(x, method)()
    assert where
    with pytest.raises(RuntimeError, match=WAIT), no_waits():
        getattr(x, method)()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_in_mixed_precision(tiny_config, name, dtype):
    """Networks run in half precision, losses do not, and no gradient overflows."""
    model, optimizer, batch = training(tiny_config, name)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    expected = sum(copy.deepcopy(model)(batch).values())
    seen = []
    model.input_proj.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    scaler = torch.amp.GradScaler("cuda", init_scale=SCALE)
    with torch.autocast("cuda", dtype=dtype):
        losses = model(batch)
        total = sum(losses.values())
    assert seen == [dtype]
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    torch.testing.assert_close(total, expected, rtol=0.05, atol=0)
    scaler.scale(total).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == SCALE  # it is halved where a gradient is not finite
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert any(not torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_train_net_with_amp(shapes_root, tmp_path):
    """Boxes, masks and panoptic maps, trained and evaluated on the GPU in one run."""
    settings = {**TRAINING, "MODEL.DEVICE": "cuda", "SOLVER.AMP.ENABLED": True, "SOLVER.MAX_ITER": 20}
    results = train(tmp_path, settings, config=PANOPTIC)
    assert results.keys() == {"bbox", "segm", "panoptic_seg"}
    (row,) = iterations(tmp_path)
    assert {"loss_ce", "loss_mask", "loss_dice", "class_error"} <= row.keys()
    weights = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in weights.values())
