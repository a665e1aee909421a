"""Nearest upsampling by two, then a 3 x 3 convolution: together one transposed convolution.

    R  maps, C channels in, D channels out
    h, w  the small map; H, W the large one

Each pixel of the large map sees 2 x 2 pixels of the small one, not 3 x 3. That is 4 / 9 of the multiplications, and
the upsampled map is never made.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve_upsampled(x: Tensor, weight: Tensor, size: Sequence[int]) -> Tensor:
    """Upsamples to ``size`` by the nearest pixel and convolves with a border of zeros, without bias.

    x: (R, C, h, w); weight: (D, C, 3, 3); size: (H, W). Returns (R, D, H, W).
    """
    if not _by_two(x, size):
        return F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, padding=1)
    height, width = size
    out = F.conv_transpose2d(x, _transposed(weight), stride=2, padding=1)
    if height % 2 or width % 2:  # a copy: norms would make one of a view, and gradients of in-place sums several
        out = out[..., :height, :width].contiguous(memory_format=torch.channels_last)
    # At an odd side the last small pixel covers one large pixel; beyond it the kernel sees the border of zeros.
    if height % 2:
        last = F.interpolate(x[..., -2:, :], size=(min(2, height), width), mode="nearest")
        out[..., -1:, :] = F.conv2d(last, weight, padding=1)[..., -1:, :]
    if width % 2:
        last = F.interpolate(x[..., -2:], size=(height, min(2, width)), mode="nearest")
        out[..., -1:] = F.conv2d(last, weight, padding=1)[..., -1:]
    return out


def _by_two(x: Tensor, size: Sequence[int]) -> bool:
    """Whether ``size`` is twice that of x, or one less. Not in graphs, which are for any size, nor on a GPU, where the
    time was not measured; nor for fake tensors, by which multiplications are counted for all devices.
    """
    if type(x) is not Tensor or not x.is_cpu or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    return all(2 * small - large in (0, 1) for small, large in zip(x.shape[-2:], size, strict=True))


def _transposed(weight: Tensor) -> Tensor:
    """(D, C, 3, 3) to (C, D, 4, 4): along a side, a small pixel lies under two large ones, whose weights add up."""
    for dim in (2, 3):
        first, middle, last = weight.unbind(dim)
        weight = torch.stack([last, middle + last, first + middle, first], dim)
    return weight.transpose(0, 1)
