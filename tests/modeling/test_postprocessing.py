"""The parity tests hold the numbers to the original's; here is what can be said without it."""

import torch

from detr.modeling.postprocessing import LEAST_LOGIT, instance_masks


def test_a_half_of_the_image_is_a_half_of_the_mask():
    """Logits for the left half of a 16 x 24 image, at a quarter of its size, written at twice its size."""
    logits = torch.full((1, 4, 6), -3.0)
    logits[..., :3] = 3.0
    (mask,) = instance_masks(logits, (16, 24), (16, 24), (32, 48))
    assert mask.dtype == torch.bool
    assert mask.shape == (32, 48)
    assert mask[:, :24].all()
    assert not mask[:, 24:].any()


def test_padding_is_cut_off_before_the_resize():
    """An image of 16 x 16 in a batch padded to 16 x 32: what is said of the padding shows nowhere."""
    logits = torch.full((1, 4, 8), -3.0)
    logits[..., 1:4] = 3.0  # the image's right three quarters, and up to
    logits[..., 4:] = 3.0  # the end of the padding
    (mask,) = instance_masks(logits, (16, 32), (16, 16), (8, 8))
    assert not mask[:, :2].any()
    assert mask[:, 2:].all()


def test_padding_changes_masks_at_the_border_alone():
    """The same logits alone and in a padded batch; bilinear sampling looks half a cell, two pixels, beyond."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 8, 8, generator=generator)
    padded = torch.randn(5, 16, 12, generator=generator)
    padded[:, :8, :8] = logits
    alone = instance_masks(logits, (32, 32), (32, 32), (32, 32))
    together = instance_masks(padded, (64, 48), (32, 32), (32, 32))
    assert torch.equal(alone[:, :30, :30], together[:, :30, :30])
    assert 0.3 < alone.float().mean() < 0.7


def test_many_masks_are_each_like_one_alone():
    """More than are resized at once; also none."""
    logits = torch.randn(23, 5, 7, generator=torch.Generator().manual_seed(0))
    sizes = (20, 28), (19, 26), (31, 40)
    together = instance_masks(logits, *sizes)
    assert torch.equal(together, torch.cat([instance_masks(logits[i : i + 1], *sizes) for i in range(23)]))
    assert instance_masks(logits[:0], *sizes).shape == (0, 31, 40)


def test_a_logit_of_zero_is_outside():
    """And so is one that the sigmoid rounds to a half."""
    logits = torch.tensor([0.0, 1e-8, 1e-6]).view(3, 1, 1).expand(3, 2, 2)
    assert instance_masks(logits, (8, 8), (8, 8), (8, 8)).flatten(1).any(1).tolist() == [False, False, True]


def test_the_least_logit_of_a_mask_is_where_the_sigmoid_exceeds_a_half():
    bits = torch.arange(torch.tensor(8e-8).view(torch.int32), torch.tensor(1e-7).view(torch.int32), dtype=torch.int32)
    logits = bits.view(torch.float32)  # every number between
    assert torch.equal(logits > LEAST_LOGIT, logits.sigmoid() > 0.5)
    assert 0 < (logits > LEAST_LOGIT).sum() < len(logits)
