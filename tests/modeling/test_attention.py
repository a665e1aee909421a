"""Attention against torch's own module, whose parameters it has."""

import pytest
import torch
from torch import nn

from detr.modeling.attention import Attention
from detr.modeling.dropout import kept

N, T, S, D, HEADS = 2, 5, 7, 16, 4


def inputs():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(N, length, D, generator=generator, dtype=torch.float64, requires_grad=True) for length in (T, S, S)
    ]


def padding():
    mask = torch.zeros(N, S, dtype=torch.bool)
    mask[1, 4:] = True
    return mask


def modules(dropout=0.0):
    torch.manual_seed(0)
    ours = Attention(D, HEADS, dropout).double()
    nn.init.normal_(ours.in_proj_bias)
    theirs = nn.MultiheadAttention(D, HEADS, dropout, batch_first=True).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
def test_it_is_torchs_attention(mask, training):
    ours, theirs = modules()
    query, key, value = inputs()
    expected, _ = theirs.train(training)(query, key, value, key_padding_mask=mask)
    found = ours.train(training)(query, key, value, mask)
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
def test_dropout_falls_on_the_weights(mask):
    """By hand: the weights that stay are scaled, and not normalised again."""
    p = 0.4
    ours, theirs = modules(p)
    query, key, value = inputs()
    _, weights = theirs.eval()(query, key, value, key_padding_mask=mask, average_attn_weights=False)  # (N, M, T, S)
    torch.manual_seed(5)
    dropped = weights * kept(weights.shape, p) / (1 - p)
    values = nn.functional.linear(value, ours.in_proj_weight[2 * D :], ours.in_proj_bias[2 * D :])
    expected = ours.out_proj((dropped @ values.unflatten(2, (HEADS, -1)).transpose(1, 2)).transpose(1, 2).flatten(2))
    torch.manual_seed(5)
    found = ours.train()(query, key, value, mask)
    assert torch.allclose(found, expected, atol=1e-12)

    direction = torch.randn_like(found)
    parameters = [*inputs_and_weights(ours, query, key, value)]
    of_found = torch.autograd.grad((found * direction).sum(), parameters)
    of_expected = torch.autograd.grad((expected * direction).sum(), [query, key, value])
    for a, b in zip(of_found[:3], of_expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def inputs_and_weights(attention, *tensors):
    return *tensors, attention.in_proj_weight, attention.out_proj.weight


def test_the_weights_are_not_kept_for_the_gradient():
    ours, _ = modules(0.1)
    shapes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (shapes.append((x.dtype, x.shape)), x)[1], lambda x: x):
        ours.train()(*inputs())
    assert (torch.float64, (N, HEADS, T, S)) not in shapes
