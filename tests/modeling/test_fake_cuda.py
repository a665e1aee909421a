"""Training and inference on a GPU that is not there: no tensor on the wrong device, and no wait but the known ones.

tests/modeling/test_cuda.py holds the same of a real GPU, where there is one.
"""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from detr.engine.solver import build_optimizer
from tests.fake_cuda import fake_cuda, move_to_cuda
from tests.modeling.cuda_cases import CASES, INFERENCE, TRAINING, batch, build, step


def is_on_gpu(x):
    return x.device.type == "cuda"


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_the_matching_cost_and_the_metrics(name):
    cfg, model = build(name)
    with fake_cuda(backward=True) as waits:
        optimizer = build_optimizer(cfg, move_to_cuda(model).train())
        with EventStorage():
            step(model, optimizer, batch())
        assert waits == TRAINING
        trained = [p for p in model.parameters() if p.requires_grad]
        assert all(is_on_gpu(p) and is_on_gpu(p.grad) for p in trained)
        assert all(is_on_gpu(x) for p in trained for key, x in optimizer.state[p].items() if key != "step")


def test_losses_in_mixed_precision_wait_as_often():
    _, model = build("masks and queries for training")
    seen = []
    model.input_proj.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with fake_cuda() as waits, EventStorage(), torch.autocast("cuda", torch.float16):
        losses = move_to_cuda(model).train()(batch())
        assert waits == TRAINING
        assert {(loss.dtype, is_on_gpu(loss)) for loss in losses.values()} == {(torch.float32, True)}
    assert seen == [torch.float16]


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in CASES), ("panoptic", "bfloat16")])
def test_inference_waits_where_what_comes_out_depends_on_scores(name, dtype):
    _, model = build(name)
    model.inference_dtype = getattr(torch, dtype)
    seen = []
    model.input_proj.register_forward_hook(lambda *a: seen.append(a[2].dtype))
    with fake_cuda() as waits:
        outputs = move_to_cuda(model).eval()(batch())
        assert set(waits) == INFERENCE.get(name, set())
        for output in outputs:
            fields = output["instances"].get_fields()
            fields["pred_boxes"] = fields["pred_boxes"].tensor
            assert all(is_on_gpu(x) for x in fields.values())
            assert "panoptic_seg" not in output or is_on_gpu(output["panoptic_seg"][0])
    assert seen == [model.inference_dtype]


class Uploads(TorchDispatchMode):
    """Type and shape of what goes from the host to the GPU, and whether in the background."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = kwargs.get("device")
        x = args[0] if args else None
        on_host = isinstance(x, torch.Tensor) and not isinstance(x, FakeTensor)
        if on_host and target is not None and target.type == "cuda":
            self.seen.append((x.dtype, tuple(x.shape), kwargs.get("non_blocking")))
        return func(*args, **kwargs)


@pytest.mark.parametrize("training", [True, False])
def test_images_go_to_the_gpu_as_bytes_and_in_the_background(training):
    _, model = build("masks and queries for training")
    inputs = batch()
    with fake_cuda(), EventStorage(), Uploads() as uploads:
        move_to_cuda(model).train(training)
        uploads.seen.clear()
        model(inputs)
    expected = [(torch.uint8, tuple(x["image"].shape), True) for x in inputs]
    assert [x for x in uploads.seen if x[0] == torch.uint8] == expected
    if training:
        masks = [(torch.bool, tuple(x["instances"].gt_masks.tensor.shape), True) for x in inputs]
        assert [x for x in uploads.seen if x[0] == torch.bool and len(x[1]) == 3] == masks
    assert all(in_background for _, _, in_background in uploads.seen)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x[x > 0],
        lambda x: x[torch.tensor([0])],
        lambda x: x.masked_select(x > 0),
        lambda x: (x > 0).nonzero(),
        lambda x: x.unique(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: torch.ones(5).to(x.device),
        lambda x: torch.tensor([1.0], device="cuda"),
        lambda x: x.new_tensor([1.0]),
        lambda x: x.copy_(torch.ones(5)),
        lambda x: x.index_put_((x.long(),), torch.tensor(1.0)),
    ],
)
def test_waiting_is_noticed(waiting):
    with fake_cuda() as waits:
        waiting(torch.ones(5, device="cuda"))
    assert waits == ["outside detr/"]


def test_what_goes_on_in_the_background_is_no_waiting():
    with fake_cuda() as waits:
        x = torch.ones(5).to("cuda", non_blocking=True)
        x[torch.zeros(3, dtype=torch.int64, device="cuda")] = x[1:4]
        x[:2] = 1
        x[2:].copy_(torch.ones(3), non_blocking=True)
        assert x.to("cpu", non_blocking=True).device.type == "cpu"
        (x * 2).sum().sqrt()
    assert waits == []


@pytest.mark.parametrize("mixing", [lambda x: x + torch.ones(5), lambda x: torch.stack([x, torch.ones(5)])])
def test_two_devices_in_one_operator_are_an_error(mixing):
    with fake_cuda(), pytest.raises(RuntimeError, match="device"):
        mixing(torch.ones(5, device="cuda"))
