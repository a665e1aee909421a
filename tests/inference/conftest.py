"""What the tests of several modules of inference use."""

import pytest

from detr.checkpoint import DetrCheckpointer
from tests.conftest import QUICKSTART, TINY
from tests.lively import build_lively


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint with its card, of a model that finds many things."""
    folder = tmp_path_factory.mktemp("lively")
    DetrCheckpointer(build_lively(QUICKSTART, TINY), str(folder)).save("model")
    return folder / "model.pth"
