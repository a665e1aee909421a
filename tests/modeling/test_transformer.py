import pytest
import torch

from detr.modeling.transformer import Transformer


@pytest.fixture(params=[False, True], ids=["post-norm", "pre-norm"])
def transformer(request):
    torch.manual_seed(0)
    model = Transformer(d=16, heads=4, encoder_layers=2, decoder_layers=3, feedforward=32, pre_norm=request.param)
    return model.eval()


def inputs(n=2, h=4, w=5, queries=6):
    generator = torch.Generator().manual_seed(1)
    features, position = (torch.randn(n, 16, h, w, generator=generator) for _ in range(2))
    return features, position, torch.randn(queries, 16, generator=generator)


def test_shapes(transformer):
    features, position, queries = inputs()
    decoded, memory = transformer(features, position, queries, None)
    assert decoded.shape == (3, 2, 6, 16)
    assert memory.shape == features.shape
    last, _ = transformer(features, position, queries, None, return_intermediate=False)
    torch.testing.assert_close(last, decoded[-1:])


def test_what_lies_in_the_padding_does_not_matter(transformer):
    features, position, queries = inputs()
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, 3:] = padding[1, :, 4:] = True
    before, _ = transformer(features, position, queries, padding)
    features[1, :, 3:] = 1e3
    features[1, :, :, 4:] = -1e3
    after, _ = transformer(features, position, queries, padding)
    torch.testing.assert_close(after, before)
    alone, _ = transformer(features[1:, :, :3, :4], position[1:, :, :3, :4], queries, None)
    torch.testing.assert_close(before[:, 1:], alone, rtol=1e-4, atol=1e-5)


def test_queries_are_a_set(transformer):
    """Another order of the queries gives the same outputs in that order (paper, sec. 3.2)."""
    features, position, queries = inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    decoded, _ = transformer(features, position, queries, None)
    permuted, _ = transformer(features, position, queries[order], None)
    torch.testing.assert_close(permuted, decoded[:, :, order])


def test_positions_tell_pixels_apart(transformer):
    """Without positions the encoder cannot tell a map from its permutation; with them it can."""
    features, position, queries = inputs()
    shuffled = features.flatten(2)[..., torch.randperm(20, generator=torch.Generator().manual_seed(2))].view_as(
        features
    )
    nowhere = torch.zeros_like(position)
    a, _ = transformer(features, nowhere, queries, None)
    b, _ = transformer(shuffled, nowhere, queries, None)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    c, _ = transformer(features, position, queries, None)
    d, _ = transformer(shuffled, position, queries, None)
    assert (c - d).abs().max() > 1e-2


def test_only_matrices_are_drawn_from_xavier():
    torch.manual_seed(0)
    model = Transformer(d=64, heads=4, encoder_layers=1, decoder_layers=1, feedforward=128)
    weight = model.encoder.layers[0].linear1.weight
    bound = (6 / (64 + 128)) ** 0.5
    assert bound * 0.95 < weight.abs().max() <= bound
    assert torch.equal(model.encoder.layers[0].norm1.weight, torch.ones(64))
    assert not model.encoder.layers[0].self_attn.in_proj_bias.any()
