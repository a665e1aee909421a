import pytest
import torch

from detr.modeling.denoising import SMALLEST, Denoising
from detr.modeling.matcher import Targets

K = 5


def targets_of(sizes, seed=0):
    """Boxes of different extents, well inside the image."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    center = torch.rand(count, 2, generator=generator) * 0.2 + 0.4
    extent = torch.rand(count, 2, generator=generator) * 0.2 + 0.1
    labels = torch.randint(0, K, (count,), generator=generator)
    return Targets(labels, torch.cat([center, extent], dim=1), list(sizes))


def noised_boxes(box, box_noise, copies=2000):
    """Positives and negatives of one box, (copies, 4) each."""
    targets = Targets(torch.tensor([2]), torch.tensor([box]), [1])
    torch.manual_seed(0)
    noised = Denoising(K, copies, box_noise, label_noise=0.0)(targets, limit=copies)
    return noised.boxes[0].view(copies, 2, 4).unbind(1)


def test_layout_by_hand():
    """Images with 3, 0 and 1 objects, 4/3 in the mean: one copy of the first, p p p n n n, and two of the last, p n."""
    targets = targets_of([3, 0, 1])
    noised = Denoising(K, copies=2, box_noise=0.0, label_noise=0.0, negatives=True)(targets, limit=100)
    assert noised.copy.tolist() == [[0] * 6, [-1] * 6, [0, 0, 1, 1, -1, -1]]
    assert noised.image.tolist() == [0] * 6 + [2] * 4
    assert noised.query.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert noised.positive.tolist() == [0, 1, 2, 6, 8]
    assert noised.target.tolist() == [0, 1, 2, 3, 3]
    assert noised.boxes.shape == (3, 6, 4)
    for image, rows in ((0, [0, 1, 2, 0, 1, 2]), (2, [3, 3, 3, 3])):
        assert torch.equal(noised.boxes[image, : len(rows)], targets.boxes[rows])
        assert torch.equal(noised.labels[image, : len(rows)], targets.labels[rows])


def test_layout_without_negatives_by_hand():
    targets = targets_of([1, 3])
    noised = Denoising(K, copies=3, box_noise=0.0, label_noise=0.0, negatives=False)(targets, limit=100)
    assert noised.copy.tolist() == [[0, 1, 2, -1, -1, -1], [0, 0, 0, 1, 1, 1]]
    assert noised.image.tolist() == [0] * 3 + [1] * 6
    assert noised.query.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5]
    assert noised.positive.tolist() == list(range(9))
    assert noised.target.tolist() == [0, 0, 0, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("sizes", [(2, 0, 1), (0, 3), (4, 4, 1)], ids=str)
def test_every_positive_comes_from_its_target(negatives, sizes):
    """The noise is too little to take a box for another's."""
    targets = targets_of(sizes)
    noised = Denoising(K, 3, box_noise=1e-4, label_noise=0.0, negatives=negatives)(targets, limit=100)
    image, query = noised.image[noised.positive], noised.query[noised.positive]
    torch.testing.assert_close(noised.boxes[image, query], targets.boxes[noised.target], rtol=0, atol=1e-4)
    assert torch.equal(noised.labels[image, query], targets.labels[noised.target])
    for size, counts in zip(sizes, torch.bincount(noised.target).split(sizes), strict=True):
        assert counts.tolist() == [int(counts[0])] * size if size else True  # each in every copy once
    of_image = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    assert torch.equal(image, of_image[noised.target])
    assert len(noised.image) == (noised.copy >= 0).sum() == (2 if negatives else 1) * len(noised.positive)


def test_noise_is_bounded_and_reaches_its_bounds():
    """A positive moves and grows by up to 0.4 of its extent, a negative by 0.4 to 0.8, in every coordinate."""
    box = [0.5, 0.4, 0.1, 0.2]
    extent = torch.tensor([0.1, 0.2])
    for boxes, least, most in zip(noised_boxes(box, 0.4), (0.0, 0.4), (0.4, 0.8), strict=True):
        shift = (boxes[:, :2] - torch.tensor(box[:2])) / extent
        growth = boxes[:, 2:] / extent - 1
        change = torch.cat([shift, growth], dim=1)  # (copies, 4)
        assert change.abs().min() >= least - 1e-5
        assert change.abs().max() <= most + 1e-5
        for column in change.T:  # both signs, and the whole range
            for values in (column[column > 0], -column[column < 0]):
                assert 0.4 < len(values) / len(column) < 0.6
                assert values.min() < least + 0.02
                assert values.max() > most - 0.02
        assert torch.corrcoef(change.T).fill_diagonal_(0).abs().max() < 0.1  # the four are independent


def test_boxes_with_noise_stay_in_the_image():
    """Centers on it, extents at most the image's and never nothing, where noise asks for more."""
    for boxes in noised_boxes([0.98, 0.01, 0.9, 0.8], 1.0):
        assert boxes[:, :2].min() == 0
        assert boxes[:, :2].max() == 1
        assert boxes[:, 2:].max() == 1
        assert boxes[:, 2:].min() >= SMALLEST
    _, negatives = noised_boxes([0.5, 0.5, 0.1, 0.1], 1.0)
    assert (negatives[:, 2:] == SMALLEST).float().mean() > 0.3  # half of them are to lose all their extent and more
    (tiny, _) = noised_boxes([0.5, 0.5, 1e-5, 1e-5], 0.4)
    assert (tiny[:, 2:] == SMALLEST).all()


@pytest.mark.parametrize("odds", [0.0, 0.2, 1.0])
def test_label_noise_has_its_odds(odds):
    """A random label is the right one once in K times."""
    targets = Targets(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.1, 0.1]]), [1])
    torch.manual_seed(0)
    labels = Denoising(K, 5000, 0.0, odds)(targets, limit=5000).labels
    assert labels.shape == (1, 10000)
    counts = torch.bincount(labels[0], minlength=K) / labels.numel()
    expected = torch.full((K,), odds / K)
    expected[2] += 1 - odds
    torch.testing.assert_close(counts, expected, rtol=0, atol=0.02 if odds else 0.0)


@pytest.mark.parametrize(
    ("sizes", "limit", "copies"),
    [
        ((3, 3), 100, (4, 4)),
        ((3, 3), 11, (3, 3)),
        ((1, 3), 100, (4, 2)),  # not more than 4 x 2 objects, by the mean of 2
        ((1, 3), 6, (4, 2)),
        ((1, 3), 5, (4, 1)),
        ((1, 3), 2, (2, 1)),
        ((0, 9), 1, (0, 1)),
    ],
    ids=str,
)
def test_crowded_images_get_fewer_copies_but_one_at_least(sizes, limit, copies):
    noised = Denoising(K, 4)(targets_of(sizes), limit)
    assert (noised.copy.amax(dim=1) + 1).tolist() == list(copies)
    objects = [a * b for a, b in zip(sizes, copies, strict=True)]
    assert noised.boxes.shape == (2, 2 * max(objects), 4)
    assert len(noised.target) == sum(objects)


@pytest.mark.parametrize("negatives", [False, True])
def test_without_any_object_all_is_padding(negatives):
    noised = Denoising(K, 4, negatives=negatives)(targets_of([0, 0]), limit=40)
    assert noised.copy.tolist() == [[-1], [-1]]
    assert noised.boxes.shape == (2, 1, 4)
    assert noised.boxes.isfinite().all()
    assert noised.labels.max() < K
    assert [len(x) for x in (noised.image, noised.query, noised.positive, noised.target)] == [0] * 4
