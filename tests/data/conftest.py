"""Images of a user's, and data sets that are forgotten after the test."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image


@pytest.fixture
def images(tmp_path):
    """Four readable JPEGs of 32 x 24 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    paths = [tmp_path / f"{index}.jpg" for index in range(4)]
    for path in paths:
        Image.fromarray(noise).save(path)
    return paths


@pytest.fixture
def registered():
    """The names of data sets that the test has registered."""
    names = []
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
