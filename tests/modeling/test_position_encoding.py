import math

import pytest
import torch

from detr.modeling.position_encoding import LearnedPositionEncoding, SinePositionEncoding


def test_sine_encoding_of_one_pixel_by_hand():
    """Row 2 of 3, column 1 of 2, four channels for each axis: frequencies 1 and 1 / 100."""
    encoding = SinePositionEncoding(8)(torch.zeros(1, 3, 2, dtype=torch.bool))
    y = 2 / (3 + 1e-6) * 2 * math.pi
    x = 1 / (2 + 1e-6) * 2 * math.pi
    expected = [f(v / w) for v in (y, x) for w in (1, 100) for f in (math.sin, math.cos)]
    torch.testing.assert_close(encoding[0, :, 1, 0], torch.tensor(expected))


def test_sine_encoding_ignores_the_padding():
    """The unpadded part of a padded image is encoded as if nothing was beside it."""
    mask = torch.ones(1, 7, 9, dtype=torch.bool)
    mask[:, :4, :5] = False
    encoding = SinePositionEncoding(16)
    torch.testing.assert_close(encoding(mask)[:, :, :4, :5], encoding(torch.zeros(1, 4, 5, dtype=torch.bool)))


def test_sine_encoding_refuses_channels_it_cannot_share():
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        SinePositionEncoding(6)


def test_learned_encoding_looks_rows_and_columns_up():
    encoding = LearnedPositionEncoding(6)
    out = encoding(torch.zeros(2, 3, 5, dtype=torch.bool))
    assert out.shape == (2, 6, 3, 5)
    expected = torch.cat([encoding.col_embed.weight[4], encoding.row_embed.weight[2]])
    assert torch.equal(out[1, :, 2, 4], expected)


def test_learned_encoding_refuses_a_map_beyond_its_tables():
    with pytest.raises(ValueError, match=r"up to 50 x 50, not 3 x 51"):
        LearnedPositionEncoding(4)(torch.zeros(1, 3, 51, dtype=torch.bool))
