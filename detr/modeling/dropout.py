"""Dropout that is quick on the CPU and keeps little for the gradient.

torch's own draws a float for each value there, one core at a time, and keeps it, and the input beside it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DRAWS = 4  # of 16 bits each, in a random integer of 64
LEVELS = 2**16


class Dropout(nn.Module):
    """Zeroes values at random and scales the others, in training alone (paper, appendix A.4)."""

    def __init__(self, p: float) -> None:
        """p: the probability to be zeroed; on the CPU in steps of 2^-16. Raises ValueError outside [0, 1)."""
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a probability of {p} to be zeroed: it must be at least 0 and below 1")
        self.p = p

    def extra_repr(self) -> str:
        return f"p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        """x is given away: on the CPU it is written over, as what a linear layer returned may be."""
        if not self.training or not self.p:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x.mul_(kept(x.shape, self.p)).mul_(1 / (1 - self.p))


def kept(shape: torch.Size, p: float) -> Tensor:
    """Which values stay: bool on the CPU, each False with probability p in steps of 2^-16, from torch's generator."""
    numel = shape.numel()
    draws = torch.empty(-(-numel // DRAWS), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    return (draws.view(torch.int16)[:numel] >= round(p * LEVELS) - LEVELS // 2).view(shape)
