"""Images reach the network as the original's do."""

import random

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from scipy.stats import ks_2samp

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.transforms import resized_shape
from tests.parity.oracle import load_oracle, original_test_transform
from tests.parity.pairs import config

# (width, height): around the bound of 1333, square, tiny, very long, already of size 800
SIZES = [(641, 427), (427, 641), (500, 333), (640, 480), (333, 333), (1001, 61), (97, 613), (800, 1067), (1333, 800),
         (801, 1335), (53, 57), (1024, 613)]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_test_tensors_are_bit_identical(size, tmp_path, tiny_config):
    pixels = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    expected = original_test_transform()(Image.open(path).convert("RGB"))
    mapped = DetrDatasetMapper(config("detr_R_50"), is_train=False)({"file_name": str(path)})
    ours = build_model(tiny_config()).preprocess([mapped])
    assert ours.image_sizes == [tuple(expected.shape[-2:])]
    assert torch.equal(ours.tensor[0], expected)


def test_sizes_agree_for_many_images():
    """The whole rule, also where Detectron2's rounding is one pixel off."""
    resize = load_oracle().transforms.RandomResize
    rng = np.random.default_rng(0)
    off_by_one = 0
    for height, width in rng.integers(20, 1500, (300, 2)).tolist():
        size = int(rng.choice([480, 512, 800]))
        image, _ = resize([size], max_size=1333)(Image.new("L", (width, height)), None)
        assert resized_shape(height, width, size, 1333) == (image.height, image.width)
        exact = image.width * height / width if width < height else image.height * width / height
        off_by_one += round(exact) != max(image.size)
    assert off_by_one > 50  # else the sizes above cannot tell truncation from rounding


@pytest.mark.slow
def test_training_augmentations_have_the_same_distribution(tmp_path):
    """Kolmogorov-Smirnov on what the random choices decide: sizes, and how much of the image is left."""
    width, height, draws = 160, 120, 500
    path = tmp_path / "image.png"
    # Pixel values tell the position: the red mean falls with a crop on the right, and mirrors with a flip.
    ramp = np.broadcast_to(np.linspace(0, 255, width, dtype=np.uint8)[None, :, None], (height, width, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(path)

    def summary(array):  # (H, W) in [0, 1]
        return array.shape[0], array.shape[1], array[0, 0], array[0, -1]

    np.random.seed(0)
    mapper = DetrDatasetMapper(config("detr_R_50"), is_train=True)
    ours = []
    for _ in range(draws):
        mapped = mapper({"file_name": str(path), "annotations": []})
        ours.append(summary(mapped["image"][0].numpy() / 255.0))

    random.seed(0)
    torch.manual_seed(0)
    transform = load_oracle().make_coco_transforms("train")
    image = Image.open(path).convert("RGB")
    theirs = []
    for _ in range(draws):
        tensor, _ = transform(image, {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64),
                                      "area": torch.zeros(0), "iscrowd": torch.zeros(0)})  # fmt: skip
        theirs.append(summary(tensor[0].numpy() * 0.229 + 0.485))

    for column in range(4):
        a, b = np.array(ours)[:, column], np.array(theirs)[:, column]
        result = ks_2samp(np.round(a, 2), np.round(b, 2))
        assert result.pvalue > 1e-3, f"column {column}: {result}"
