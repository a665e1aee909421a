"""Images of a user's."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path):
    """Four readable JPEGs of 32 x 24 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    paths = [tmp_path / f"{index}.jpg" for index in range(4)]
    for path in paths:
        Image.fromarray(noise).save(path)
    return paths
