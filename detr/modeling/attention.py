"""Multi-head attention without its weights (paper, appendix A.1), with the parameters of ``nn.MultiheadAttention``.

N  images, T queries, S keys, d width, M heads
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detr.modeling.dropout import kept


class Attention(nn.MultiheadAttention):
    """torch's parameters, their names and first values; batch first."""

    def __init__(self, d: int, heads: int, dropout: float) -> None:
        super().__init__(d, heads, dropout, batch_first=True)

    def forward(  # type: ignore[override]  # weights are never wanted here
        self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        """query (N, T, d), key and value (N, S, d); padding (N, S) bool, True = no key. Returns (N, T, d)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )  # (N, M, T or S, d / M)
        allowed = None if padding is None else ~padding[:, None, None]  # (N, 1, 1, S)
        attended = self._attend(q, k, v, allowed).transpose(1, 2).flatten(2)
        return F.linear(attended, self.out_proj.weight, self.out_proj.bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        if not dropout or q.device.type != "cpu":
            # torch's fused kernels never store the T x S weights.
            return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)
        # The CPU has no such kernel with dropout: the weights are computed again for the gradient.
        keep = kept(torch.Size((*q.shape[:3], k.shape[2])), dropout)
        return checkpoint(  # type: ignore[no-any-return]
            _attend_with_dropout, q, k, v, allowed, keep, dropout, use_reentrant=False, preserve_rng_state=False
        )


def _attend_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, keep: Tensor, dropout: float
) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.mT  # (N, M, T, S)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    weights = scores.softmax(-1) * keep
    return weights @ (v / (1 - dropout))
