"""Multiplications and kept bytes of modules small enough to count by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detr.dry_run import count_kept, count_macs, meta_like_gpu


def whole(name):
    return "all"


def frozen(module):
    return module.to("meta").requires_grad_(False)


def test_macs_of_a_convolution():
    conv = frozen(nn.Conv2d(3, 8, kernel_size=3, stride=2, padding=1))
    macs = count_macs(conv, whole, lambda: conv(torch.empty(1, 3, 8, 10, device="meta")))
    assert macs == {"all": 8 * 3 * 9 * (4 * 5)}  # weights x pixels of the output


def test_macs_of_a_part_of_the_weights():
    conv = frozen(nn.Conv2d(3, 8, kernel_size=3, padding=1))
    macs = count_macs(conv, whole, lambda: F.conv2d(torch.empty(1, 2, 4, 5, device="meta"), conv.weight[:, :2]))
    assert macs == {"all": 8 * 2 * 9 * (2 * 3)}


def test_macs_of_a_linear_layer_leave_bias_and_activation_out():
    model = frozen(nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.LayerNorm(4)))
    assert count_macs(model, whole, lambda: model(torch.empty(5, 16, device="meta")))["all"] == 5 * 16 * 4


@pytest.mark.parametrize("padded", [False, True])
def test_macs_of_attention(padded):
    n, q, s, d = 2, 3, 7, 8
    attention = frozen(nn.MultiheadAttention(d, 2, batch_first=True))
    query, key = torch.empty(n, q, d, device="meta"), torch.empty(n, s, d, device="meta")
    padding = torch.empty(n, s, dtype=torch.bool, device="meta") if padded else None
    with meta_like_gpu():
        macs = count_macs(attention, whole, lambda: attention(query, key, key, padding, need_weights=False))
    projections = n * d * d * (q + s + s + q)  # of queries, keys, values and the output
    assert macs["all"] == projections + 2 * n * q * s * d  # queries x keys, weights x values


class Head(nn.Module):
    """Is entered by two methods, none of them ``forward``."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def prepare(self, x):
        return x @ self.first.weight.T

    def decode(self, x):
        return self.second(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 8), Head()

    def forward(self, x):
        return self.head.decode(self.head.prepare(self.body(x)) @ x.new_ones(16, 16))


def top(name):
    return name.split(".")[0] or "rest"


def test_macs_by_part_whichever_method_enters_it():
    model = frozen(Model())
    macs = count_macs(model, top, lambda: model(torch.empty(10, 2, device="meta")))
    assert macs == {"body": 10 * 2 * 8, "head": 10 * (8 * 16 + 16 * 4), "rest": 10 * 16 * 16}
    assert "forward" not in vars(model.body)  # nothing stays behind
    assert "prepare" not in vars(model.head)


def test_kept_bytes_by_part():
    model = Model()
    kept = count_kept(model, top, lambda: model(torch.ones(10, 2)))
    # Each linear layer keeps its input, and the product in the rest its constant; weights do not count.
    assert kept == {"body": 10 * 2 * 4, "head": (10 * 8 + 10 * 16) * 4, "rest": 16 * 16 * 4}


def test_a_storage_is_kept_once():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.ones(10, 8)
    # The input, and what ReLU gives: ReLU keeps its output, and the layer after it the same as its input.
    assert count_kept(model, whole, lambda: model(x)) == {"all": 10 * 8 * 4 + 10 * 16 * 4}
    assert count_kept(model.requires_grad_(False), whole, lambda: model(x)) == {}


def test_what_nobody_holds_is_not_kept():
    side = nn.Linear(16, 4)
    model = nn.Sequential(nn.Linear(8, 16), side)

    def run():
        x = model[0](torch.ones(10, 8))
        side(x)
        return x.sum()

    assert count_kept(model, whole, run) == {"all": 10 * 8 * 4}


def test_a_gpu_keeps_no_attention_weights_and_one_byte_for_dropout():
    n, s, d, heads = 1, 64, 32, 2
    attention = nn.MultiheadAttention(d, heads, dropout=0.1, batch_first=True).to("meta")
    x = torch.empty(n, s, d, device="meta")
    with meta_like_gpu():
        kept = count_kept(attention, whole, lambda: attention(x, x, x, need_weights=False)[0])
        dropped = count_kept(nn.Dropout(0.1), whole, lambda: F.dropout(x * torch.ones_like(x).requires_grad_(), 0.1))
    tokens = n * s * d * 4
    # The input, query, key and value in one tensor, the output, the log of each row's sum, seed and offset.
    assert kept["all"] == tokens + 3 * tokens + tokens + n * heads * s * 4 + 2 * 8
    assert dropped["all"] == tokens + n * s * d  # the product keeps x
