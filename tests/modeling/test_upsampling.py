import pytest
import torch
import torch.nn.functional as F

from detr.modeling.upsampling import convolve_upsampled


@pytest.mark.parametrize("size", [(8, 10), (7, 10), (8, 9), (7, 9), (9, 10), (4, 5), (20, 23)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_upsampling_and_a_convolution(size, memory_format):
    """Sides twice as long, one less, and others, which take the plain way."""
    x, weight = _random(3, 6, 4, 5, memory_format=memory_format), _random(2, 6, 3, 3, memory_format=memory_format)
    _compare(x, weight, size)


@pytest.mark.parametrize("small", [(1, 1), (1, 4), (3, 1)])
@pytest.mark.parametrize("less", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_side_of_a_single_pixel(small, less):
    x, weight = _random(2, 3, *small), _random(4, 3, 3, 3)
    _compare(x, weight, tuple(2 * side - one for side, one in zip(small, less, strict=True)))


def test_a_small_pixel_counts_for_the_large_ones_that_it_covers():
    """By hand: a single pixel of 1, upsampled to 2 x 2, under a kernel of the digits 1 to 9."""
    kernel = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    out = convolve_upsampled(torch.ones(1, 1, 1, 1), kernel, (2, 2))
    assert out.tolist() == [[[[5 + 6 + 8 + 9, 4 + 5 + 7 + 8], [2 + 3 + 5 + 6, 1 + 2 + 4 + 5]]]]


def _random(*shape, memory_format=torch.contiguous_format):
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(memory_format=memory_format)
    return x.requires_grad_()


def _compare(x, weight, size):
    expected = F.conv2d(F.interpolate(x, size=size, mode="nearest"), weight, padding=1)
    out = convolve_upsampled(x, weight, size)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad((out * upstream).sum(), (x, weight))
    for gradient, plain in zip(gradients, torch.autograd.grad((expected * upstream).sum(), (x, weight)), strict=True):
        torch.testing.assert_close(gradient, plain, rtol=0, atol=1e-12)
