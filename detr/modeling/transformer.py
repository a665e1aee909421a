"""The encoder-decoder transformer (paper, sec. 3.2 and fig. 10).

    N  images
    S  positions of the feature map, H * W
    Q  object queries
    L  decoder layers
    d  width of the model
    key_padding_mask  (N, S) bool, True = padding, or None where no image is padded
    query_mask  (N, Q, Q) bool, True = the query of the row does not see that of the column; None where all see all

Positions are added to queries and keys of every attention and never to values. Parameter names are
those of the original's checkpoints.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detr.modeling.dropout import Dropout, MultiheadAttention


class EncoderLayer(nn.Module):
    """Self-attention over the feature map, then a feed-forward network."""

    def __init__(self, d: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiheadAttention(d, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, feedforward), nn.Linear(feedforward, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """x, position: (N, S, d). Returns (N, S, d)."""
        if self.pre_norm:
            x = x + self._attend(self.norm1(x), position, key_padding_mask)
            return x + _feed_forward(self, self.norm2(x))
        x = self.norm1(x + self._attend(x, position, key_padding_mask))
        return self.norm2(x + _feed_forward(self, x))

    def _attend(self, x: Tensor, position: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        query = x + position
        return self.dropout(_attend(self.self_attn, query, query, x, key_padding_mask))


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the memory, a feed-forward network."""

    def __init__(self, d: int, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiheadAttention(d, heads, dropout, batch_first=True)
        self.multihead_attn = MultiheadAttention(d, heads, dropout, batch_first=True)  # cross-attention
        self.linear1, self.linear2 = nn.Linear(d, feedforward), nn.Linear(feedforward, d)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        query_embed: Tensor,
        memory: Tensor,
        memory_keys: Tensor,
        key_padding_mask: Tensor | None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """x, query_embed: (N, Q, d); memory, memory_keys (memory + positions): (N, S, d); query_mask: (N heads, Q, Q).

        Returns (N, Q, d).
        """
        if self.pre_norm:
            x = x + self._self_attend(self.norm1(x), query_embed, query_mask)
            x = x + self._cross_attend(self.norm2(x), query_embed, memory, memory_keys, key_padding_mask)
            return x + _feed_forward(self, self.norm3(x))
        x = self.norm1(x + self._self_attend(x, query_embed, query_mask))
        x = self.norm2(x + self._cross_attend(x, query_embed, memory, memory_keys, key_padding_mask))
        return self.norm3(x + _feed_forward(self, x))

    def _self_attend(self, x: Tensor, query_embed: Tensor, query_mask: Tensor | None) -> Tensor:
        query = x + query_embed
        return self.dropout(_attend(self.self_attn, query, query, x, mask=query_mask))

    def _cross_attend(
        self, x: Tensor, query_embed: Tensor, memory: Tensor, memory_keys: Tensor, key_padding_mask: Tensor | None
    ) -> Tensor:
        return self.dropout(_attend(self.multihead_attn, x + query_embed, memory_keys, memory, key_padding_mask))


class Encoder(nn.Module):
    """A stack of encoder layers; the pre-norm variant normalizes its output."""

    def __init__(self, layers: list[EncoderLayer], norm: nn.LayerNorm | None, checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.checkpointed = checkpointed

    def forward(self, x: Tensor, position: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = _run(layer, x, position, key_padding_mask, checkpointed=self.checkpointed)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers; one LayerNorm is shared by the outputs of all of them."""

    def __init__(self, layers: list[DecoderLayer], norm: nn.LayerNorm, checkpointed: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.checkpointed = checkpointed

    def forward(
        self,
        query_embed: Tensor,
        memory: Tensor,
        position: Tensor,
        key_padding_mask: Tensor | None,
        return_intermediate: bool,
        content: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> Tensor:
        """query_mask: (N heads, Q, Q). Returns (L, N, Q, d), or (1, N, Q, d) of the last layer."""
        memory_keys = memory + position  # the same for every layer
        x = torch.zeros_like(query_embed) if content is None else content
        inputs = [query_embed, memory, memory_keys, key_padding_mask]
        if query_mask is not None:
            inputs.append(query_mask)
        outputs = []
        for layer in self.layers:
            x = _run(layer, x, *inputs, checkpointed=self.checkpointed)
            outputs.append(x)
        return self.norm(torch.stack(outputs if return_intermediate else outputs[-1:]))


class Transformer(nn.Module):
    """Encodes the feature map, then decodes all objects in parallel."""

    def __init__(
        self,
        *,
        d: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feedforward: int = 2048,
        dropout: float = 0.1,
        pre_norm: bool = False,
        checkpointed: bool = False,
    ) -> None:
        """checkpointed: what is inside a layer is computed again for the gradient instead of being kept."""
        super().__init__()
        sizes = (d, heads, feedforward, dropout, pre_norm)
        self.d = d
        self.heads = heads
        self.encoder = Encoder(
            [EncoderLayer(*sizes) for _ in range(encoder_layers)], nn.LayerNorm(d) if pre_norm else None, checkpointed
        )
        self.decoder = Decoder([DecoderLayer(*sizes) for _ in range(decoder_layers)], nn.LayerNorm(d), checkpointed)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)  # matrices only; biases and norms keep their defaults

    def forward(
        self,
        features: Tensor,
        position: Tensor,
        query_embed: Tensor,
        key_padding_mask: Tensor | None,
        return_intermediate: bool = True,
        content: Tensor | None = None,
        query_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decodes the queries against one feature map.

        features, position: (N, d, H, W)
        query_embed: (Q, d), or (N, Q, d) where every image has its own
        key_padding_mask: (N, H, W) bool, True = padding, or None
        return_intermediate: whether the earlier decoder layers are wanted too, for the auxiliary losses
        content: (N, Q, d), the decoder's input; None for zeros

        Returns the decoder's outputs (L or 1, N, Q, d) and the memory (N, d, H, W).
        """
        n, _, h, w = features.shape
        x = features.flatten(2).transpose(1, 2)  # (N, S, d); OpenVINO does not know .mT
        position = position.flatten(2).transpose(1, 2)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.flatten(1)
        memory = self.encoder(x, position, key_padding_mask)
        queries = query_embed.expand(n, -1, -1)
        query_mask = None if query_mask is None else query_mask.expand(n, -1, -1).repeat_interleave(self.heads, dim=0)
        more = () if content is None and query_mask is None else (content, query_mask)
        decoded = self.decoder(queries, memory, position, key_padding_mask, return_intermediate, *more)
        return decoded, memory.transpose(1, 2).unflatten(2, (h, w))


class MLP(nn.Module):
    """A perceptron with ReLU between its layers; the one of 3 layers predicts boxes (paper, sec. 3.2)."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int, num_layers: int) -> None:
        super().__init__()
        widths = [d_in, *[d_hidden] * (num_layers - 1), d_out]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., d_in). Returns (..., d_out)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = layer(x).relu()
        return last(x)  # type: ignore[no-any-return]


def _attend(
    attention: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """query (N, T, d), key and value (N, S, d), mask (N heads, T, S) bool. Returns (N, T, d).

    The weights are never computed as a tensor.
    """
    more = {} if mask is None else {"attn_mask": mask}
    attended: Tensor = attention(query, key, value, key_padding_mask=key_padding_mask, need_weights=False, **more)[0]
    return attended


def _run(layer: nn.Module, *inputs: Tensor | None, checkpointed: bool) -> Tensor:
    if checkpointed and torch.is_grad_enabled():
        return checkpoint(layer, *inputs, use_reentrant=False)  # type: ignore[no-any-return]
    return layer(*inputs)  # type: ignore[no-any-return]


def _feed_forward(layer: EncoderLayer | DecoderLayer, x: Tensor) -> Tensor:
    # ReLU after dropout is the same as before it, and keeps one tensor for the gradient instead of two. It is not in
    # place, which hooks of torch forbid.
    return layer.dropout(layer.linear2(layer.dropout(layer.linear1(x)).relu()))  # type: ignore[no-any-return]
