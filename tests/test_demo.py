"""demo.py, as Detectron2's users call theirs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import demo
from detr.errors import InputError
from tests.conftest import QUICKSTART, TINY, as_opts


@pytest.fixture
def options(tiny_config, tmp_path):
    """The command line's options, with weights of a model whose first class always has the score 0.4."""
    model = build_model(tiny_config())
    torch.nn.init.zeros_(model.class_embed.weight)
    with torch.no_grad():
        model.class_embed.bias[:] = torch.tensor([0.4, 0.15, 0.15, 0.15, 0.15]).log()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    opts = as_opts({**TINY, "MODEL.WEIGHTS": tmp_path / "weights.pth"})
    return lambda *args: ["--config-file", str(QUICKSTART), *map(str, args), "--opts", *opts]


def save_image(path, size=(90, 70)):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((*size[::-1], 3), 90, dtype=np.uint8)).save(path)


@pytest.mark.parametrize(("threshold", "objects"), [(0.3, 20), (0.5, 0)])
def test_images_are_drawn_with_the_objects_above_the_threshold(threshold, objects, options, tmp_path, capsys):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / "photos" / name)
    pattern, output = tmp_path / "photos" / "*.jpg", tmp_path / "out"
    assert demo.main(options("--input", pattern, "--output", output, "--confidence-threshold", threshold)) == 0
    assert capsys.readouterr().out.count(f": {objects} objects -> ") == 2
    for name in ("a.png", "b.png"):
        pixels = np.asarray(Image.open(output / name).convert("RGB")).astype(int)
        assert pixels.shape == (70, 90, 3)
        assert (abs(pixels - 90).max() > 20) == (objects > 0)


def test_a_file_that_is_no_image_is_skipped_and_the_status_says_so(options, tmp_path, capsys):
    save_image(tmp_path / "photos" / "a.jpg")
    (tmp_path / "photos" / "b.jpg").write_text("no image")
    assert demo.main(options("--input", tmp_path / "photos" / "*", "--output", tmp_path / "out")) == 1
    assert "b.jpg is skipped" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").is_file()


def test_an_input_is_never_written_over():
    with pytest.raises(InputError, match=r"would write over .*x/a\.png"):
        demo.choose_targets(["y/a.jpg", "x/a.png"], Path("x"))
    with pytest.raises(InputError, match="would write over"):
        demo.choose_targets(["a.png"], Path("a.png"))


def test_every_image_has_a_file_of_its_own():
    targets = demo.choose_targets(["a/1.jpg", "b/1.jpg", "2.png"], Path("out"))
    assert targets == [Path("out/1.png"), Path("out/1_2.png"), Path("out/2.png")]
    assert demo.choose_targets(["1.jpg"], Path("drawn.jpg")) == [Path("drawn.jpg")]
    with pytest.raises(InputError, match=r"--input names 2 images: name a folder"):
        demo.choose_targets(["1.jpg", "2.jpg"], Path("drawn.jpg"))
