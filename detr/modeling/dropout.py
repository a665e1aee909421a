"""Dropout for training on a CPU: a fourth of torch's time for random numbers, and one byte kept where torch keeps four.

On a GPU torch has both already.

    N  images, M  heads, e  channels of a head
    T, S  queries and keys of an attention
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 2**16  # so finely a probability is rounded


def draw_dropout_mask(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """What dropout keeps, (shape) bool on the CPU, and the factor that makes up for what it drops.

    p: of an element to be dropped, in (0, 1); rounded to multiples of 2**-16. Four elements share a random number.
    """
    count, dropped = math.prod(shape), min(max(round(p * LEVELS), 1), LEVELS - 1)
    numbers = torch.empty((count + 3) // 4, dtype=torch.int64, device="cpu").random_(-(2**63), None)
    dropout_mask = numbers.view(torch.int16)[:count] >= dropped - LEVELS // 2
    return dropout_mask.view(*shape), LEVELS / (LEVELS - dropped)


class Dropout(nn.Dropout):
    """torch's, but on a CPU with ``draw_dropout_mask``."""

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape. Returns a new tensor where it drops, else x."""
        if not self.training or x.device.type != "cpu" or not 0 < self.p < 1:
            return super().forward(x)
        dropout_mask, factor = draw_dropout_mask(x.shape, self.p)
        return x.mul(dropout_mask).mul_(factor)


class MultiheadAttention(nn.MultiheadAttention):
    """torch's; in training on a CPU, where torch keeps three matrices of weights, its dropout keeps one of bytes.

    That is where no weights are asked for, and masks are boolean.
    """

    def forward(  # type: ignore[override]  # what torch has besides comes in ``more``
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """query: (N, T, d); key, value: (N, S, d); the rest as torch has it."""
        plain = need_weights or more or not self.batch_first or query.dim() != 3 or not self._drops(query)
        if plain or any(mask is not None and mask.dtype != torch.bool for mask in (key_padding_mask, attn_mask)):
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, **more)
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(*x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (N, M, T or S, e)
            for x in zip((query, key, value), weights, biases, strict=True)
        )
        mask = None if key_padding_mask is None else key_padding_mask[:, None, None]
        if attn_mask is not None:
            attn_mask = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:]) if attn_mask.dim() == 3 else attn_mask
            mask = attn_mask if mask is None else mask | attn_mask
        dropout_mask, factor = draw_dropout_mask((*q.shape[:3], k.shape[2]), self.dropout)
        attended = dropped_attention(q, k, v, mask, dropout_mask, factor).transpose(1, 2).flatten(2)
        return F.linear(attended, self.out_proj.weight, self.out_proj.bias), None

    def _drops(self, query: Tensor) -> bool:
        on_cpu = query.device.type == "cpu" and torch.is_grad_enabled()
        own = self._qkv_same_embed_dim and self.in_proj_bias is not None and self.bias_k is None
        return on_cpu and self.training and 0 < self.dropout < 1 and own and not self.add_zero_attn


def dropped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_mask: Tensor, factor: float
) -> Tensor:
    """Attention that drops weights, and computes them again for the gradient instead of keeping them.

    q: (N, M, T, e); k, v: (N, M, S, e)
    mask: bool, broadcast to (N, M, T, S), True = not seen; where all are, the output is 0, as torch's is
    dropout_mask, factor: as from ``draw_dropout_mask`` for (N, M, T, S)

    Returns (N, M, T, e).
    """
    return _DroppedAttention.apply(q, k, v, mask, dropout_mask, factor)  # type: ignore[no-any-return, no-untyped-call]


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_mask: Tensor, factor: float
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            ctx.save_for_backward(q, k, v, mask, dropout_mask)
            ctx.factor = factor
            return _weights(q, k, mask).mul_(dropout_mask).mul_(factor).to(v.dtype) @ v

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, dropout_mask = ctx.saved_tensors
        weights = _weights(q, k, mask)
        grad_weights = (gradient @ v.mT).to(weights.dtype).mul_(dropout_mask).mul_(ctx.factor)
        grad_v = (weights * dropout_mask).mul_(ctx.factor).to(v.dtype).mT @ gradient
        # Of softmax, and of the scale of the scores.
        grad_scores = grad_weights.sub_((grad_weights * weights).sum(-1, keepdim=True)).mul_(weights)
        grad_scores = grad_scores.mul_(q.shape[-1] ** -0.5).to(q.dtype)
        return grad_scores @ k, grad_scores.mT @ q, grad_v, None, None, None


def _weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """(N, M, T, S), of sum 1 over S; at least float32."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    if mask is None:
        return scores.softmax(-1)
    return scores.masked_fill_(mask, -math.inf).softmax(-1).masked_fill_(mask, 0)
