"""Where a pixel is: encodings of the two image axes, added to queries and keys of the attention.

N  images
H, W  height and width of the feature map
C  channels of the encoding: C / 2 for y, then C / 2 for x
mask  (N, H, W) bool, True = padding
"""

import math

import torch
from torch import Tensor, nn


class SinePositionEncoding(nn.Module):
    """Fixed sines and cosines of the position within the unpadded image (paper, appendix A.4)."""

    temperature = 10000.0  # longest wavelength, in units of the normalized axis
    eps = 1e-6

    def __init__(self, channels: int) -> None:
        """channels: C, divisible by 4 (a sine and a cosine for each axis).

        Raises ValueError for another C.
        """
        super().__init__()
        if channels % 4:
            raise ValueError(f"sine position encodings need a number of channels divisible by 4, not {channels}")
        self.channels = channels

    def forward(self, mask: Tensor) -> Tensor:
        """mask: (N, H, W) bool, True = padding. Returns (N, C, H, W) float32."""
        inside = ~mask
        y = inside.cumsum(1, dtype=torch.float32)  # (N, H, W), 1-based row within the unpadded image
        x = inside.cumsum(2, dtype=torch.float32)
        y = y / (y[:, -1:, :] + self.eps) * 2 * math.pi
        x = x / (x[:, :, -1:] + self.eps) * 2 * math.pi

        half = self.channels // 2
        waves = sine_features(y, half, self.temperature), sine_features(x, half, self.temperature)
        return torch.cat(waves, dim=-1).permute(0, 3, 1, 2)


def sine_features(position: Tensor, channels: int, temperature: float = 10000.0) -> Tensor:
    """Sines and cosines of positions, in turn: (..., channels).

    position: (...) as a phase, 2 pi for the whole axis
    channels: even; each frequency serves a sine and the cosine beside it
    """
    exponent = 2 * torch.arange(channels, device=position.device, dtype=torch.float32).div(2, rounding_mode="floor")
    wavelength = temperature ** (exponent / channels)  # (channels,)
    phase = position[..., None] / wavelength  # (..., channels)
    return torch.stack([phase[..., 0::2].sin(), phase[..., 1::2].cos()], dim=-1).flatten(-2)


class LearnedPositionEncoding(nn.Module):
    """A learned vector for each row and each column (the original code's alternative)."""

    table_size = 50  # rows of both tables, as in the original's checkpoints

    def __init__(self, channels: int) -> None:
        """channels: C, even."""
        super().__init__()
        self.row_embed = nn.Embedding(self.table_size, channels // 2)
        self.col_embed = nn.Embedding(self.table_size, channels // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, mask: Tensor) -> Tensor:
        """mask: (N, H, W) bool; only its shape counts. Returns (N, C, H, W).

        Unlike the sine encoding, channels are ordered (x, y), as in the original.
        Raises ValueError for a feature map that the tables do not cover.
        """
        n, h, w = mask.shape
        if max(h, w) > self.table_size:
            raise ValueError(
                f"the learned position encoding covers feature maps up to {self.table_size} x {self.table_size}, "
                f"not {h} x {w}: use smaller images (INPUT.MAX_SIZE_*) or MODEL.DETR.POSITION_EMBEDDING sine"
            )
        rows = self.row_embed.weight[:h, None].expand(h, w, -1)
        cols = self.col_embed.weight[None, :w].expand(h, w, -1)
        return torch.cat([cols, rows], dim=-1).permute(2, 0, 1).expand(n, -1, h, w)
