"""Python snippets of README.md and docs/ that need a model run as they stand, beside a small one.

Those of predict.md are in test_tracking.py, those of the pages on data sets and extending in test_readme.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.finder import save_finder
from tests.test_readme import blocks


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has what the snippets name: a checkpoint of a finder, and a photo of a red and a blue blob."""
    monkeypatch.chdir(tmp_path)
    save_finder(tmp_path / "output").rename("output/model_final.pth")
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    pixels[20:60, 10:40, 0] = 255
    pixels[30:70, 80:120, 2] = 255
    Image.fromarray(pixels).save("photo.jpg", quality=100)


def run(page: str, index: int, replaced: dict[str, str] | None = None, **names: Any) -> dict[str, Any]:
    """Executes a snippet. replaced: texts of it, and what they stand for here."""
    snippet = blocks(page, "python")[index]
    for old, new in (replaced or {}).items():
        assert old in snippet
        snippet = snippet.replace(old, new)
    exec(snippet, names)
    return names


def test_three_lines_from_weights_to_objects(beside):
    names = run("README.md", 0, {"detr_R_50": "output/model_final.pth"})
    assert names["instances"].pred_classes.tolist() == [0, 1]


def test_what_a_checkpoint_says_of_its_model(beside):
    card = run("checkpoints.md", 0)["card"]
    assert "META_ARCHITECTURE: BlobFinder" in card.config


@pytest.mark.slow
def test_models_of_torch_hub(cache, monkeypatch):
    """With random weights and small images."""
    monkeypatch.chdir(ROOT)
    untrained = {"pretrained=True": "pretrained=False"}
    names = run("checkpoints.md", 1, untrained, image=torch.zeros(3, 64, 96))
    assert len(names["instances"]) == 100
    names = run("migration.md", 0, {**untrained, "480, 640": "64, 96"})
    assert names["outputs"]["pred_masks"].shape == (1, 100, 16, 24)
    assert names["result"].keys() == {"png_string", "segments_info"}
