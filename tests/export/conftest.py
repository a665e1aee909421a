"""Models that are exported once, for all tests of this folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr.export import FORMATS
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts
from tests.lively import build_lively
from tools import export_model

PANOPTIC = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"
# At this threshold some queries take part in a map, and others do not.
SETTINGS = {**TINY, "MODEL.DEVICE": "cpu", "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35}


def save_lively(config: Path, folder: Path, settings: dict[str, Any] = SETTINGS) -> tuple[list[str], Any]:
    """The KEY VALUE pairs of a lively model, its weights among them, and itself."""
    model = build_lively(config, settings)
    weights = str(folder / "lively.pth")
    torch.save({"model": model.state_dict()}, weights)
    return [*as_opts(settings), "MODEL.WEIGHTS", weights], model


def run(config: Path, format: str, folder: Path, opts: list[Any], *options: str) -> None:
    """tools/export_model.py, as from the command line."""
    arguments = ["--config-file", config, "--format", format, "--output", folder, *options, *opts]
    export_model.main([str(argument) for argument in arguments])


@pytest.fixture(scope="package")
def panoptic(tmp_path_factory):
    return save_lively(PANOPTIC, tmp_path_factory.mktemp("panoptic"))


@pytest.fixture(scope="package")
def boxes(tmp_path_factory):
    return save_lively(QUICKSTART, tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="package")
def scripted(boxes, tmp_path_factory):
    """The folder of a box model as TorchScript, which is the fastest to make. Tests copy what they damage."""
    folder = tmp_path_factory.mktemp("scripted") / "exported"
    run(QUICKSTART, "torchscript", folder, boxes[0])
    return folder


@pytest.fixture(
    scope="package",
    params=["torchscript", *(pytest.param(x, marks=pytest.mark.slow) for x in FORMATS if x != "torchscript")],
)
def exported(request, panoptic, tmp_path_factory):
    """The folder of a panoptic model, in each format. Tests copy what they change."""
    folder = tmp_path_factory.mktemp(request.param) / "exported"
    run(PANOPTIC, request.param, folder, panoptic[0])
    return folder


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photo that is stored sideways."""
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).resize((311, 197), Image.Resampling.BICUBIC).save(path, exif=exif, quality=95)
    return path
