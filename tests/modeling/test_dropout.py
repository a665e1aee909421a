import pytest
import torch

from detr.modeling.dropout import Dropout, kept


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_share_of_p_is_zeroed_and_the_rest_scaled(p):
    torch.manual_seed(0)
    numel = 400_000
    values = Dropout(p)(torch.ones(numel - 3))  # not a multiple of the values in a random integer
    zeroed = (values == 0).float().mean().item()
    assert abs(zeroed - p) < 5 * (p * (1 - p) / numel) ** 0.5  # five standard deviations
    assert torch.allclose(values[values != 0], torch.tensor(1 / (1 - p)))


def test_draws_follow_the_seed_and_differ_from_place_to_place():
    torch.manual_seed(3)
    first, second = kept(torch.Size((4, 1000)), 0.5), kept(torch.Size((4, 1000)), 0.5)
    torch.manual_seed(3)
    assert torch.equal(first, kept(torch.Size((4, 1000)), 0.5))
    assert not torch.equal(first, second)
    lanes = first.flatten().view(-1, 4).float()  # four values from one random integer
    correlation = torch.corrcoef(lanes.T) - torch.eye(4)
    assert correlation.abs().max() < 5 / 1000**0.5


def test_gradients_are_zeroed_and_scaled_likewise():
    x = torch.randn(1000, requires_grad=True)
    output = Dropout(0.25)(x * 1.0)
    output.sum().backward()
    assert torch.allclose(x.grad, (output != 0).float() / 0.75)


def test_nothing_happens_outside_training():
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
