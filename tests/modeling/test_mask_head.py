import pytest
import torch
import torch.nn.functional as F

from detr.modeling.mask_head import MaskFeatures, MaskHead

D, HEADS, PYRAMID = 256, 8, (12, 10, 6)  # narrower, GroupNorm would take a channel alone and its bias away
IMAGES, QUERIES, SIZE = 2, 9, (5, 7)
PYRAMID_SIZES = ((9, 14), (18, 27), (36, 53))  # odd ones too, as of images of any size
# More rows than the head takes at once, in no order, one of them twice
IMAGE_OF = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0])
QUERY_OF = torch.tensor([3, 8, 0, 1, 3, 5, 6, 2, 1, 8, 7, 0, 4, 5])


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = MaskHead(d=D, heads=HEADS, pyramid_channels=PYRAMID).double()
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if parameter.dim() == 1:  # at 0 and 1, a forgotten bias or norm would not show
                parameter.add_(torch.randn_like(parameter))
            elif "attention" in name:
                parameter.mul_(4)  # a fresh head looks everywhere alike
    return head


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(1)

    def random(*shape):
        return torch.randn(IMAGES, *shape, generator=generator, dtype=torch.float64)

    padding = torch.zeros(IMAGES, *SIZE, dtype=torch.bool)
    padding[1, 3:] = padding[1, :, 5:] = True
    return MaskFeatures(
        projected=random(D, *SIZE),
        memory=random(D, *SIZE),
        key_padding_mask=padding,
        pyramid=tuple(random(c, *size) for c, size in zip(PYRAMID, PYRAMID_SIZES, strict=True)),
        queries=random(QUERIES, D),
    )


def plain_attention(head, features, image, query):
    """(M, h, w) of one query, from the definition."""
    q = head.attention.q_linear(features.queries[image, query])  # (d,)
    k = head.attention.k_linear(features.memory[image].flatten(1).T)  # (h w, d)
    scores = torch.stack(
        [k_head @ q_head / (D / HEADS) ** 0.5 for q_head, k_head in zip(q.chunk(HEADS), k.chunk(HEADS, 1), strict=True)]
    )
    scores[:, features.key_padding_mask[image].flatten()] = -torch.inf
    return scores.flatten().softmax(0).view(HEADS, *SIZE)


def plain_masks(head, features, image_of, query_of):
    """The head's definition, as the paper draws it: everything concatenated, added and convolved for each row."""
    masks = []
    for image, query in zip(image_of.tolist(), query_of.tolist(), strict=True):
        x = torch.cat([features.projected[image], plain_attention(head, features, image, query)])[None]
        x = head.gn1(head.lay1(x)).relu()
        x = head.gn2(head.lay2(x)).relu()
        for number, level in enumerate(features.pyramid, start=3):
            x = F.interpolate(x, size=level.shape[-2:], mode="nearest")
            x = x + getattr(head, f"adapter{number - 2}")(level[image][None])
            x = getattr(head, f"gn{number}")(getattr(head, f"lay{number}")(x)).relu()
        masks.append(head.out_lay(x)[0, 0])
    return torch.stack(masks)


def test_what_is_shared_by_an_image_changes_nothing(head, features):
    masks = head(features, IMAGE_OF, QUERY_OF)
    expected = plain_masks(head, features, IMAGE_OF, QUERY_OF)
    assert masks.shape == (14, *PYRAMID_SIZES[-1])
    assert expected.std(0).mean() > 0.1  # the rows differ: else agreement says little
    torch.testing.assert_close(masks, expected, rtol=0, atol=1e-10)


def test_rows_do_not_depend_on_each_other(head, features):
    image_of, query_of = torch.cartesian_prod(torch.arange(IMAGES), torch.arange(QUERIES)).unbind(1)
    every = head(features, image_of, query_of).unflatten(0, (IMAGES, QUERIES))
    torch.testing.assert_close(head(features, IMAGE_OF, QUERY_OF), every[IMAGE_OF, QUERY_OF])


def test_an_image_taken_out_of_the_batch_keeps_its_masks(head, features):
    queries = torch.tensor([8, 2, 4])
    together = head(features, torch.ones_like(queries), queries)
    torch.testing.assert_close(head(features.of_image(1), torch.zeros_like(queries), queries), together)
    unpadded = MaskFeatures(**{**vars(features), "key_padding_mask": None})
    alone = head(unpadded.of_image(0), torch.zeros_like(queries), queries)  # the first image has no padding
    torch.testing.assert_close(alone, head(features, torch.zeros_like(queries), queries))


def test_attention_never_looks_at_the_padding(head, features):
    before = head.attention(features.queries, features.memory, features.key_padding_mask)  # (N, Q, M, h, w)
    torch.testing.assert_close(before.sum((2, 3, 4)), torch.ones(IMAGES, QUERIES, dtype=torch.float64))
    assert (before[1, :, :, 3:] == 0).all()
    assert (before[1, :, :, :, 5:] == 0).all()
    assert (before[0] > 0).all()
    memory = torch.where(features.key_padding_mask[:, None], 1e3, features.memory)
    assert torch.equal(head.attention(features.queries, memory, features.key_padding_mask), before)
    assert not torch.equal(head.attention(features.queries, memory, None), before)


def test_no_rows_give_no_masks_and_gradients_of_zero(head, features):
    none = torch.empty(0, dtype=torch.int64)
    masks = head(features, none, none)
    assert masks.shape == (0, *PYRAMID_SIZES[-1])
    masks.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in head.parameters())


def test_gradients_are_those_of_the_plain_computation(head, features):
    """They reach every parameter, and no in-place operation spoils them."""
    weights = torch.randn(14, *PYRAMID_SIZES[-1], dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = []
    for run in (head, lambda *args: plain_masks(head, *args)):
        loss = (run(features, IMAGE_OF, QUERY_OF) * weights).sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
    for (name, _), gradient, expected in zip(head.named_parameters(), *gradients, strict=True):
        assert expected.norm() > 1e-6, name
        torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9)


def test_widths_are_those_of_the_originals_checkpoints():
    head = MaskHead(d=256, heads=8, pyramid_channels=(1024, 512, 256))
    convolutions = {n: tuple(m.weight.shape[:2]) for n, m in head.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert convolutions == {
        **{"lay1": (264, 264), "lay2": (128, 264), "lay3": (64, 128), "lay4": (32, 64), "lay5": (16, 32)},
        **{"out_lay": (1, 16), "adapter1": (128, 1024), "adapter2": (64, 512), "adapter3": (32, 256)},
    }
    assert groups(head) == [8] * 5


def test_narrow_heads_have_groups_that_divide_their_widths():
    """132, 64, 32, 16 and 8 channels, and 68, 32, 16, 8 and 4."""
    assert groups(MaskHead(d=128, heads=4, pyramid_channels=PYRAMID)) == [4, 8, 8, 8, 8]
    assert groups(MaskHead(d=64, heads=4, pyramid_channels=PYRAMID)) == [4, 8, 8, 8, 2]


def groups(head):
    return [getattr(head, f"gn{number}").num_groups for number in range(1, 6)]
