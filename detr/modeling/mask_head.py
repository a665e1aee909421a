"""The mask head (paper, sec. 4.3 and fig. 8): one mask for each chosen query, at the finest map's resolution.

    N  images
    Q  object queries of an image
    R  rows: the (image, query) pairs that masks are wanted for
    d  width of the transformer, M its heads
    h, w  the feature map that the transformer reads

Parameter names are those of the original's checkpoints, below ``attention`` for its two projections. What
depends only on the image is computed once per image, not once per row: a convolution is linear, so that the
convolution of a sum, or of channels side by side, is the sum of the parts' convolutions. On COCO images
this saves a third of the multiplications.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Rows that go through the convolutions together: they bound the memory. On the CPU, more make maps that its
# allocator fetches from the system anew each time, unless the maps are small.
ROWS_AT_ONCE = 4
PIXELS_AT_ONCE = 2**15  # of the finest maps
ROWS_AT_ONCE_ON_GPU = 10
GROUPS = 8  # of GroupNorm


@dataclass
class MaskFeatures:
    """What the mask head reads of N images.

    projected: (N, d, h, w), the encoder's input; memory: (N, d, h, w), its output
    key_padding_mask: (N, h, w) bool, True = padding, or None where no image is padded
    pyramid: three maps (N, C_i, H_i, W_i) of the backbone, from coarse to fine
    queries: (N, Q, d), the output of the last decoder layer
    """

    projected: Tensor
    memory: Tensor
    key_padding_mask: Tensor | None
    pyramid: tuple[Tensor, ...]
    queries: Tensor

    def of_image(self, index: int) -> "MaskFeatures":
        """The same of one image, N = 1."""
        one = slice(index, index + 1)
        return MaskFeatures(
            projected=self.projected[one],
            memory=self.memory[one],
            key_padding_mask=None if self.key_padding_mask is None else self.key_padding_mask[one],
            pyramid=tuple(level[one] for level in self.pyramid),
            queries=self.queries[one],
        )


class SharedMaps(NamedTuple):
    """What the masks of N images rest on.

    attention: (N, Q, M, h, w), where each query looks
    first: (N, d + M, h, w), what the image adds to the first convolution, bias included
    coarse, middle, fine: (N, C_i, H_i, W_i), what it adds to the third to fifth
    """

    attention: Tensor
    first: Tensor
    coarse: Tensor
    middle: Tensor
    fine: Tensor

    def rows(self, image_of: Tensor, query_of: Tensor) -> tuple[Tensor, ...]:
        """The maps of R rows, (R, ...) each; those of a single image stay (1, ...) and are broadcast, not copied.

        image_of: (R,) int64 in [0, N); query_of: (R,) int64 in [0, Q)
        """
        of_image = (x if len(x) == 1 else x[image_of] for x in self[1:])
        return self.attention[image_of, query_of], *of_image


class AttentionMaps(nn.Module):
    """Where each query looks: multi-head attention without values."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear, self.k_linear = nn.Linear(d, d), nn.Linear(d, d)
        for linear in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, memory: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """queries (N, Q, d), memory (N, d, h, w), key_padding_mask (N, h, w).

        Returns (N, Q, M, h, w), of sum 1 over M, h, w.
        """
        n, d, h, w = memory.shape
        scale = (d / self.heads) ** -0.5
        q = self.q_linear(queries).mul(scale).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, M, Q, d / M)
        k = F.conv2d(memory, self.k_linear.weight[:, :, None, None], self.k_linear.bias)  # (N, d, h, w)
        scores = q @ k.view(n, self.heads, d // self.heads, h * w)  # (N, M, Q, h w)
        if key_padding_mask is not None:
            scores = scores.masked_fill(key_padding_mask.flatten(1)[:, None, None], -math.inf)
        scores = scores.transpose(1, 2)  # (N, Q, M, h w)
        return scores.flatten(2).softmax(-1).view(n, -1, self.heads, h, w)


class MaskHead(nn.Module):
    """Predicts masks from attention maps and features, by convolutions and the backbone's pyramid."""

    def __init__(
        self, *, d: int, heads: int, pyramid_channels: tuple[int, int, int], checkpointed: bool = False
    ) -> None:
        """d: divisible by 16 and by ``heads``; pyramid_channels: of the backbone's maps, from coarse to fine
        checkpointed: what is inside the convolutions is computed again for the gradient instead of being kept
        """
        super().__init__()
        self.checkpointed = checkpointed
        self.attention = AttentionMaps(d, heads)
        widths = (d + heads, d // 2, d // 4, d // 8, d // 16)
        self.lay1, self.gn1 = _conv3x3(widths[0], widths[0]), _norm(widths[0])
        self.lay2, self.gn2 = _conv3x3(widths[0], widths[1]), _norm(widths[1])
        self.lay3, self.gn3 = _conv3x3(widths[1], widths[2]), _norm(widths[2])
        self.lay4, self.gn4 = _conv3x3(widths[2], widths[3]), _norm(widths[3])
        self.lay5, self.gn5 = _conv3x3(widths[3], widths[4]), _norm(widths[4])
        self.out_lay = _conv3x3(widths[4], 1)
        self.adapter1 = nn.Conv2d(pyramid_channels[0], widths[1], 1)
        self.adapter2 = nn.Conv2d(pyramid_channels[1], widths[2], 1)
        self.adapter3 = nn.Conv2d(pyramid_channels[2], widths[3], 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution here has one
        self.to(memory_format=torch.channels_last)  # on a CPU, 29 % less time

    def forward(self, features: MaskFeatures, image_of: Tensor, query_of: Tensor) -> Tensor:
        """Mask logits of R rows, at the size of the finest map of the pyramid: (R, H_3, W_3).

        image_of: (R,) int64 in [0, N); query_of: (R,) int64 in [0, Q)
        """
        shared = self.share(features)
        height, width = features.pyramid[-1].shape[-2:]
        on_cpu = max(ROWS_AT_ONCE, PIXELS_AT_ONCE // (height * width))
        at_once = on_cpu if image_of.device.type == "cpu" else ROWS_AT_ONCE_ON_GPU
        chunks = zip(image_of.split(at_once), query_of.split(at_once), strict=True)
        return torch.cat([self._decode(*shared.rows(i, q)) for i, q in chunks])

    def _decode(self, *maps: Tensor) -> Tensor:
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(self.decode, *maps, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return self.decode(*maps)

    def share(self, features: MaskFeatures) -> "SharedMaps":
        """What all rows of an image share, computed once per image."""
        attention = self.attention(features.queries, features.memory, features.key_padding_mask)  # (N, Q, M, h, w)
        of_image = self.lay1.weight[:, : -self.attention.heads]
        first = F.conv2d(features.projected, of_image, self.lay1.bias, padding=1)
        adapters = (self.adapter1, self.adapter2, self.adapter3)
        levels = [
            layer(adapter(level))
            for layer, adapter, level in zip(self._upper_layers(), adapters, features.pyramid, strict=True)
        ]
        return SharedMaps(attention, first, *levels)

    def decode(self, attention: Tensor, first: Tensor, *levels: Tensor) -> Tensor:
        """Mask logits (R, H_3, W_3) of the rows with these maps (see ``SharedMaps.rows``)."""
        x = F.conv2d(attention, self.lay1.weight[:, -self.attention.heads :], padding=1)
        x = self.gn1(x.add_(first)).relu_()  # (R, d + M, h, w)
        x = self.gn2(self.lay2(x)).relu_()  # (R, d / 2, h, w)
        for layer, norm, level in zip(self._upper_layers(), (self.gn3, self.gn4, self.gn5), levels, strict=True):
            x = F.interpolate(x, size=level.shape[-2:], mode="nearest")
            x = F.conv2d(x, layer.weight, padding=1)  # the bias is in `level`
            x = norm(x.add_(level)).relu_()
        return self.out_lay(x).squeeze(1)

    def _upper_layers(self) -> tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d]:
        return self.lay3, self.lay4, self.lay5


def _conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1)


def _norm(channels: int) -> nn.GroupNorm:
    """8 groups, as in the original; fewer where 8 does not divide the width, which the original cannot have.

    Then every group has at least two channels: a single one would lose its mean and its scale.
    """
    if channels % GROUPS == 0:
        return nn.GroupNorm(GROUPS, channels)
    return nn.GroupNorm(min(math.gcd(GROUPS, channels), max(channels // 2, 1)), channels)
