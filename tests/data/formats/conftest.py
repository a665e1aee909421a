"""Photos to annotate."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photo():
    """photo(path, size=(64, 48), exif=None) writes an image of (width, height), and the folders above it."""

    def write(path: Path, size=(64, 48), orientation=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        exif = Image.Exif()
        if orientation:
            exif[0x0112] = orientation
        Image.fromarray(noise).save(path, exif=exif)
        return path

    return write


@pytest.fixture
def text():
    """text(path, content) writes a file, and the folders above it."""

    def write(path: Path, content: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return write
