"""The operators of folded ResNets: oneDNN's where they work, torch's own elsewhere."""

import logging
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from detr.modeling import folded_resnet
from tests.modeling.test_folded_resnet import FusedCalls, assert_close, folded, image, plain_resnet


@pytest.mark.parametrize("mixed", [False, True])
@torch.no_grad()
def test_double_precision_is_not_fused(tiny_config, mixed):
    plain = plain_resnet(tiny_config).double()
    resnet = folded(plain)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), FusedCalls() as calls:
        assert_close(resnet(image(dtype=torch.float64)), plain(image(dtype=torch.float64)), 1e-12)
    assert not calls.count


@torch.no_grad()
def test_nothing_is_fused_where_onednn_is_switched_off(tiny_config, monkeypatch):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with FusedCalls() as calls:
        outputs = resnet(image())
    assert_close(outputs, plain(image()))
    assert not calls.count


@torch.no_grad()
def test_a_run_without_numbers_leaves_no_trace(tiny_config):
    resnet = folded(plain_resnet(tiny_config))
    folded_resnet._onednn_agrees.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        outputs = resnet(torch.empty(2, 3, 65, 97))
    assert outputs["res5"].shape == (2, 512, 3, 4)
    with FusedCalls() as calls:
        resnet(image())
    assert calls.count == 52


@torch.no_grad()
def test_multiplications_are_counted(tiny_config):
    counts = []
    plain = plain_resnet(tiny_config)
    for model in (plain, folded(plain)):
        with FlopCounterMode(display=False) as counter:
            model(image())
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


@torch.no_grad()
def test_a_traced_resnet_has_torchs_operators_alone(tiny_config):
    plain = plain_resnet(tiny_config)
    traced = torch.jit.trace(folded(plain), image(), strict=False)
    assert "mkldnn" not in str(traced.inlined_graph)
    assert_close(traced(image()), plain(image()))


@torch.no_grad()
def test_mixed_precision(tiny_config):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    with torch.autocast("cpu", torch.bfloat16), FusedCalls() as calls:
        outputs = resnet(image())
    assert {x.dtype for x in outputs.values()} == {torch.bfloat16}
    assert bool(calls.count) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert_close(outputs, plain(image()), 0.05)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_block_takes_any_layout(tiny_config, dtype, layout):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    x = torch.randn(2, 64, 17, 25, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = [resnet.res2[1](x.to(dtype)), resnet.res3[0](x.to(dtype))]
    for y, block in zip(found, (plain.res2[1], plain.res3[0]), strict=True):
        torch.testing.assert_close(y.float(), block(x), rtol=1e-4, atol=1e-4 if dtype == torch.float32 else 0.1)


def fail(*arguments):
    raise RuntimeError("no such operator")


def zeros(x, *arguments):
    return torch.zeros_like(x)


def takes_less(x, weight, bias):
    return x


FAULTS = {
    "_convolution_pointwise": [fail, zeros, takes_less],
    "_convolution_pointwise_": [
        SimpleNamespace(),
        SimpleNamespace(binary=fail),
        SimpleNamespace(binary=zeros),
        SimpleNamespace(binary=takes_less),
    ],
}


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults])
@torch.no_grad()
def test_conv2d_replaces_operators_that_do_not_work(tiny_config, monkeypatch, caplog, name, fault):
    """Torch may drop or change them at any time, for they are private."""
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.ops.mkldnn, name, fault)
    folded_resnet._onednn_agrees.cache_clear()
    try:
        assert_close(resnet(image()), plain(image()))
        with FusedCalls() as calls:
            assert_close(resnet(image()), plain(image()))
        assert not calls.count
        messages = [record.message for record in caplog.records if record.name == folded_resnet.__name__]
        assert len(messages) == len({torch.float32, torch.bfloat16}), messages  # once each
    finally:
        folded_resnet._onednn_agrees.cache_clear()
