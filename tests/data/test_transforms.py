import math

import numpy as np
import pytest
from detectron2.data import transforms as T

from detr.data.transforms import ResizeShortestEdge, resized_shape, training_augmentations


@pytest.mark.parametrize(
    ("shape", "size", "bound", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1066)),  # 1066.67 is cut off, where Detectron2 rounds to 1067
        ((640, 480), 800, 1333, (1066, 800)),
        ((427, 640), 800, 1333, (800, 1199)),
        ((333, 500), 800, 1333, (800, 1201)),
        ((240, 640), 800, 1333, (500, 1333)),  # the longer side is bound: 1333 * 240 / 640 = 499.9
        ((240, 640), 800, math.inf, (800, 2133)),
        ((800, 1000), 800, 1333, (800, 1000)),  # nothing to do
        ((2, 40000), 800, 1333, (1, 20000)),  # the original's shorter side would be 0
    ],
)
def test_sizes_by_hand(shape, size, bound, expected):
    assert resized_shape(*shape, size, bound) == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 20000), (30000, 3)])
def test_images_of_extreme_shapes_fit_the_memory(shape):
    """Before the crop, the original would make an image of 600 x 12,000,000 pixels of the second."""
    np.random.seed(0)
    image = np.zeros((*shape, 3), dtype=np.uint8)
    for _ in range(10):
        transforms = T.AugmentationList(training_augmentations((480, 800), 1333))(T.AugInput(image))
        height, width = transforms.apply_image(image).shape[:2]
        assert min(height, width) >= 1
        assert max(height, width) <= 20000


def test_a_size_of_zero_leaves_the_image_alone():
    transform = ResizeShortestEdge(0, 1333).get_transform(np.zeros((5, 7, 3), dtype=np.uint8))
    assert isinstance(transform, T.NoOpTransform)


def test_training_sizes_and_crops_stay_in_their_bounds():
    np.random.seed(0)
    image = np.zeros((200, 300, 3), dtype=np.uint8)
    sides = set()
    for _ in range(60):
        augmented = T.AugInput(image)
        T.AugmentationList(training_augmentations((480, 512), 700)).__call__(augmented)
        height, width = augmented.image.shape[:2]
        assert min(height, width) <= 512
        assert max(height, width) <= 701
        sides.add(min(height, width))
    assert {480, 466} & sides  # 466: 300 pixels became 700, no crop
    assert len(sides) > 2  # crops have other shapes


def test_range_sampling_draws_between_the_bounds():
    np.random.seed(0)
    resize = training_augmentations((40, 60), 1000, sampling="range", crop=None, flip="none")[0]
    heights = {resize.get_transform(np.zeros((100, 100, 3))).new_h for _ in range(200)}
    assert heights == set(range(40, 61))
