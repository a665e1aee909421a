"""Dropout on the CPU, and attention that computes its weights again, against torch's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr.modeling.dropout import Dropout, MultiheadAttention, draw_dropout_mask, dropped_attention
from detr.modeling.transformer import EncoderLayer

N, HEADS, T, S, D = 2, 4, 5, 7, 16


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_so_many_are_dropped_independently_and_the_mean_stays(p):
    torch.manual_seed(0)
    kept, factor = draw_dropout_mask((1000, 1003), p)
    assert kept.shape == (1000, 1003)
    assert abs(kept.float().mean() - (1 - p)) < 2e-3  # 4 standard deviations
    assert factor * (1 - p) == pytest.approx(1, abs=2e-4)
    flat = kept.flatten()
    for distance in (1, 2, 3, 4):  # the first three share a random number
        both = (flat[distance:] & flat[:-distance]).float().mean()
        assert abs(both - (1 - p) ** 2) < 3e-3


def test_dropout_scales_what_it_keeps_and_so_the_gradient():
    torch.manual_seed(0)
    dropout, x = Dropout(0.25), torch.full((3, 50), 2.0, requires_grad=True)
    y = dropout(x)
    assert sorted(set(y.flatten().tolist())) == [0, pytest.approx(2 / 0.75)]
    y.sum().backward()
    assert torch.equal(x.grad, y.detach() / 2)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), y)  # a training goes on exactly
    assert dropout.eval()(x) is x
    assert torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


def test_dropout_of_nan_is_nan():
    assert Dropout(0.5)(torch.full((100,), math.nan)).isnan().all()


def masks(batch=N):
    padding = torch.zeros(batch, S, dtype=torch.bool)
    padding[-1, 4:] = True
    hidden = torch.rand(batch * HEADS, T, S, generator=torch.Generator().manual_seed(1)) < 0.3
    hidden[:, :, 0] = False
    return padding, hidden


@pytest.mark.parametrize("masked", [False, True])
def test_attention_and_its_gradients_are_those_of_plain_products(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(N, HEADS, n, 3, dtype=torch.float64, requires_grad=True) for n in (T, S, S))
    kept, factor = draw_dropout_mask((N, HEADS, T, S), 0.3)
    mask = masks()[1].view(N, HEADS, T, S) if masked else torch.zeros(1, 1, 1, S, dtype=torch.bool)
    weights = (q @ k.mT / math.sqrt(3)).masked_fill(mask, -math.inf).softmax(-1)
    expected = (weights * kept * factor) @ v
    found = dropped_attention(q, k, v, mask if masked else None, kept, factor)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (q, k, v), upstream)
    torch.testing.assert_close(torch.autograd.grad(found, (q, k, v), upstream), gradients)


def test_a_query_that_sees_nothing_gets_zeros_as_from_torch_and_nan_stays():
    q, k, v = (torch.randn(1, 1, n, 4) for n in (2, 3, 3))
    mask = torch.tensor([[True, True, True], [False, False, True]])
    kept = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, ~mask)
    torch.testing.assert_close(dropped_attention(q, k, v, mask, kept, 1.0), expected)
    assert dropped_attention(q * math.nan, k, v, mask, kept, 1.0)[0, 0, 1].isnan().all()


@pytest.mark.parametrize("which", ["none", "padding", "hidden", "both"])
def test_attention_that_drops_next_to_nothing_is_torch_s(which):
    """At the least probability, 2^-16, none of these weights is dropped with this seed."""
    torch.manual_seed(0)
    ours, theirs = (
        MultiheadAttention(D, HEADS, 1e-9, batch_first=True),
        nn.MultiheadAttention(D, HEADS, batch_first=True),
    )
    theirs.load_state_dict(ours.state_dict())
    padding, hidden = masks()
    given = {}
    if which in ("padding", "both"):
        given["key_padding_mask"] = padding
    if which in ("hidden", "both"):
        given["attn_mask"] = hidden
    query, key, value = torch.randn(N, T, D), torch.randn(N, S, D), torch.randn(N, S, D)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        output, weights = ours(query, key, value, need_weights=False, **given)
    assert weights is None
    assert [x.dtype for x in saved if x.shape == (N, HEADS, T, S) and x is not hidden] == [torch.bool] * (
        1 + (which == "both" or which == "hidden")
    )
    expected = theirs(query, key, value, need_weights=False, **given)[0]
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-4)
    for x in (output, expected):
        x.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-3)


def test_attention_drops_weights_in_training_alone():
    torch.manual_seed(0)
    attention, x = MultiheadAttention(D, HEADS, 0.5, batch_first=True), torch.randn(N, T, D)
    dropped, again = (attention(x, x, x, need_weights=False)[0] for _ in range(2))
    assert not torch.allclose(dropped, again)
    mean = torch.stack([attention(x, x, x, need_weights=False)[0] for _ in range(2000)]).mean(0)
    plain, weights = attention.eval()(x, x, x)
    assert weights.shape == (N, T, T)
    torch.testing.assert_close(attention(x, x, x, need_weights=False)[0], plain)
    torch.testing.assert_close(mean, plain, rtol=0, atol=0.06)


def test_attention_in_bfloat16_is_near_that_in_float32():
    torch.manual_seed(0)
    attention, x = MultiheadAttention(D, HEADS, 0.2, batch_first=True), torch.randn(N, T, D)
    torch.manual_seed(1)
    plain = attention(x, x, x, need_weights=False)[0]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attention(x, x, x, need_weights=False)[0]
    mixed.sum().backward()
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), plain, rtol=0, atol=0.03)


def test_a_feed_forward_network_keeps_one_float_an_element():
    """ReLU after dropout keeps what the next product keeps."""
    layer, x = EncoderLayer(D, HEADS, 64, 0.1, False), torch.randn(N, T, D)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.setdefault(x.data_ptr(), x), lambda x: x):
        layer(x, torch.zeros_like(x), None)
    assert sorted(str(x.dtype) for x in saved.values() if x.numel() == N * T * 64) == ["torch.bool", "torch.float32"]


def test_hooks_of_a_feed_forward_network():
    """torch refuses a layer that changes what another one's backward hook has seen."""
    torch.manual_seed(0)
    layer, seen = EncoderLayer(D, HEADS, 32, 0.0, pre_norm=False), []
    layer.linear1.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.linear1.register_forward_hook(lambda _, inputs, output: seen.append(output))
    x = torch.randn(N, T, D)
    layer(x, torch.zeros_like(x), None).sum().backward()
    assert seen[1] == "backward"
    assert (seen[0] < 0).any()
