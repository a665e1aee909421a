"""demo.py, as Detectron2's users call theirs."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

import demo
from detr.errors import InputError
from detr.inference.video import VideoReader, VideoWriter
from detr.pictures.files import choose_targets, choose_video
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts
from tests.finder import save_finder


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


@pytest.fixture
def finder(tmp_path):
    """As ``options``, with a checkpoint of a model that finds red and blue blobs."""
    weights = save_finder(tmp_path / "finder")
    return lambda *args: ["--model", str(weights), *map(str, args)]


def save_image(path, size=(90, 70)):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((*size[::-1], 3), 90, dtype=np.uint8)).save(path)


def save_video(path, count=12):
    """A red square that moves to the right by 4 pixels a frame, and a blue one that stays."""
    with VideoWriter(path, Fraction(12)) as writer:
        for i in range(count):
            image = np.zeros((128, 128, 3), dtype=np.uint8)
            image[20:44, 4 * i : 4 * i + 24, 0] = 255
            image[80:104, 60:84, 2] = 255
            writer.write(image)
    return path


@pytest.mark.parametrize(("threshold", "objects"), [(0.3, 20), (0.5, 0)])
def test_images_are_drawn_with_the_objects_above_the_threshold(threshold, objects, options, tmp_path, capsys):
    for name in ("a.jpg", "b.jpg"):
        save_image(tmp_path / "photos" / name)
    pattern, output = tmp_path / "photos" / "*.jpg", tmp_path / "out"
    assert demo.main(options("--input", pattern, "--output", output, "--confidence-threshold", threshold)) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"2 images, {2 * objects} objects, ")
    assert printed.out.endswith(f" -> {output}\n")
    assert printed.err == ""
    for name in ("a.jpg", "b.jpg"):
        pixels = np.asarray(Image.open(output / name).convert("RGB")).astype(int)
        assert pixels.shape == (70, 90, 3)
        assert (abs(pixels - 90).max() > 20) == (objects > 0)


def test_a_file_that_is_no_image_is_skipped_and_the_status_says_so(options, tmp_path, capsys):
    save_image(tmp_path / "photos" / "a.jpg")
    save_image(tmp_path / "photos" / "c.jpg")
    (tmp_path / "photos" / "b.jpg").write_text("no image")
    (tmp_path / "photos" / "notes.txt").write_text("of no account in a folder")
    inputs = tmp_path / "photos", tmp_path / "missing.jpg"
    assert demo.main(options("--input", *inputs, "--output", tmp_path / "out", "--batch", 2)) == 1
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.err.splitlines()] == ["skipped:"] * 2
    assert "b.jpg is no image" in printed.err
    assert "missing.jpg (No such file" in printed.err
    assert "2 images" in printed.out
    assert "2 skipped" in printed.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "c.jpg"]


def test_results_of_images_are_written_as_json(finder, tmp_path):
    for i in range(3):
        image = np.zeros((128, 128, 3), dtype=np.uint8)
        image[10 : 30 + i, 40:60, 0] = 255
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    found = tmp_path / "found.json"
    assert demo.main(finder("--input", tmp_path, "--json", found, "--batch", 2, "--classes", "red, b, blue,d")) == 0
    results = json.loads(found.read_text())
    assert [x["bbox"] for x in results] == [[40, 10, 20, 20 + i] for i in range(3)]
    assert [(x["image_id"], Path(x["file_name"]).name) for x in results] == [(i + 1, f"{i}.png") for i in range(3)]
    assert {x["category_name"] for x in results} == {"red"}


def test_a_video_is_drawn_into_a_video(finder, tmp_path, capsys):
    clip, output, found = save_video(tmp_path / "clip.mp4"), tmp_path / "out", tmp_path / "found.json"
    assert demo.main(finder("--video-input", clip, "--output", output, "--json", found, "--batch", 5)) == 0
    assert "12 frames, 24 objects" in capsys.readouterr().out
    with av.open(str(output / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.average_rate, stream.frames) == (12, 12)
    with VideoReader(clip) as before, VideoReader(output / "clip.mp4") as after:
        for old, new in zip(before, after, strict=True):
            assert abs(old.image.astype(int) - new.image)[80:104, 55:90].max() > 60  # the box of the one that stays
    moving = [x["bbox"][0] for x in json.loads(found.read_text()) if x["category_name"] == "disc"]
    assert moving == pytest.approx([4 * i for i in range(12)], abs=2)


def test_an_interrupt_leaves_a_video_that_plays_and_whole_results(finder, tmp_path, capsys, monkeypatch):
    clip, output, found = save_video(tmp_path / "clip.mp4"), tmp_path / "out.mp4", tmp_path / "found.json"
    drawn = iter([None] * 5)

    def draw(image, *_):
        if next(drawn, "done") == "done":
            raise KeyboardInterrupt
        return image

    monkeypatch.setattr(demo, "draw_prediction", draw)
    assert demo.main(finder("--video-input", clip, "--output", output, "--json", found)) == 130
    assert capsys.readouterr().out.endswith("; interrupted\n")
    assert len(json.loads(found.read_text())) == 10
    with VideoReader(output) as reader:
        assert len(list(reader)) == 5


def test_tiles_are_for_the_command_line_too(finder, tmp_path, capsys):
    image = np.zeros((512, 512, 3), dtype=np.uint8)
    image[100:112, 100:112, 0] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    for tiles, count in ((), 0), (("--tiles", 128), 1):
        demo.main(finder("--input", tmp_path / "a.png", "--output", tmp_path / "out.png", *tiles))
        assert f"1 image, {count} object" in capsys.readouterr().out


def test_panoptic_maps_are_drawn(tmp_path, capsys):
    from detr.checkpoint import DetrCheckpointer
    from tests.lively import build_lively

    config = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"
    DetrCheckpointer(build_lively(config, TINY), str(tmp_path)).save("model")
    save_image(tmp_path / "a.png", (128, 128))
    weights, output = tmp_path / "model.pth", tmp_path / "out.png"
    args = ["--model", str(weights), "--input", str(tmp_path / "a.png"), "--output", str(output)]
    assert demo.main([*args, "--confidence-threshold", "0.1"]) == 0
    assert "segments" in capsys.readouterr().out
    assert abs(np.asarray(Image.open(output)).astype(int) - 90).max() > 20


def test_attention_is_drawn_beside_the_image(options, tmp_path, capsys):
    save_image(tmp_path / "a.jpg")
    args = ["--input", tmp_path / "a.jpg", "--output", tmp_path / "out", "--confidence-threshold", 0.3, "--attention"]
    assert demo.main(options(*args, "--points", "3,4", "89.5,69")) == 0
    assert capsys.readouterr().out.startswith("1 image, 20 objects, ")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "a_attention.png"]
    with Image.open(tmp_path / "out" / "a_attention.png") as sheet:
        assert sheet.width > 1000
    with pytest.raises(InputError, match=r"a\.jpg: the point 91,3 is outside the image, which has 90 x 70 pixels"):
        demo.main(options(*args, "--points", "91,3"))


def test_an_exported_model_has_no_attention(tmp_path):
    from tests.export.conftest import run, save_lively

    opts, _ = save_lively(QUICKSTART, tmp_path, TINY)
    run(QUICKSTART, "torchscript", tmp_path / "exported", opts)
    save_image(tmp_path / "a.png")
    names = "--model", tmp_path / "exported", "--input", tmp_path / "a.png", "--output", tmp_path / "out"
    with pytest.raises(InputError, match=r"ExportedDetr cannot be shown, .* name the checkpoint"):
        demo.main([*map(str, names), "--attention"])


ATTENTION = ["--model", "m", "--attention"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*ATTENTION, "--video-input", "a.mp4", "--output", "out"], "--attention is for images"),
        ([*ATTENTION, "--input", "a.jpg"], "name both --input and --output"),
        ([*ATTENTION, "--input", "a.jpg", "--output", "out", "--tiles", "80"], "leave out --tiles"),
        (["--model", "m", "--input", "a.jpg", "--points", "1,2"], "--points are for --attention"),
        ([*ATTENTION, "--input", "a.jpg", "--output", "out", "--points", "1;2"], "'1;2' is no point: give X,Y"),
        (["--input", "a.jpg"], "name a model: --model detr_R_50"),
        (["--model", "detr_R_50"], "--input --video-input --webcam is required"),
        (["--model", "detr_R_50", "--input", "a.jpg", "--batch", "x"], "invalid int value: 'x'"),
        (["--model", "detr_R_50", "--inputs", "a.jpg", "--webcam"], "unrecognized arguments: --inputs a.jpg (see"),
        (["--model", "m", "--input", "a.jpg", "--batch", "2", "A.B", "1"], "A.B 1; config keys go behind --opts"),
    ],
)
def test_a_wrong_option_is_one_line(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        demo.main(args)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_a_picture_that_cannot_be_written_is_one_line(finder, tmp_path):
    save_image(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out/a\.png cannot be written \(Not a directory\): name another"):
        demo.main(finder("--input", tmp_path / "a.png", "--output", tmp_path / "file" / "out"))


def test_a_video_among_images_is_named(finder, tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"no image")
    assert demo.main(finder("--input", tmp_path / "a.mp4", "--output", tmp_path / "out")) == 1
    assert "; --video-input takes videos\n" in capsys.readouterr().err


def test_without_a_display_output_must_be_named(finder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    save_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"no display to show pictures on: .*--output"):
        demo.main(finder("--input", tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("option", "package", "extra"), [("--tiles", "sahi.models.detectron2", "tiles"), ("--video-input", "av", "video")]
)
def test_a_missing_package_is_one_line(option, package, extra, finder, tmp_path, monkeypatch):
    for name in ("detr.inference.tiles", "detr.inference.video"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    save_image(tmp_path / "a.png")
    source = [] if option == "--video-input" else ["--input", tmp_path / "a.png"]
    with pytest.raises(InputError, match=rf"pip install -e '\.\[{extra}\]'"):
        demo.main(finder(*source, option, 128, "--json", tmp_path / "found.json"))


def test_an_input_is_never_written_over(tmp_path):
    with pytest.raises(InputError, match=r"would write over .*x/a\.png"):
        choose_targets(["y/a.jpg", "x/a.png"], Path("x"))
    with pytest.raises(InputError, match="would write over"):
        choose_targets(["a.png"], Path("a.png"))
    with pytest.raises(InputError, match=r"would write over .*b_attention\.png"):
        choose_targets(["b_attention.png"], Path("b.png"), attention=True)
    with pytest.raises(InputError, match="would write over"):
        choose_video(Path("x"), "clip", "x/clip.mp4")


def test_every_image_has_a_file_of_its_own():
    targets = choose_targets(["a/1.jpg", "b/1.jpg", "1_2.jpg", "2.tif", "http://x/3.webp?y=4.png"], Path("out"))
    assert targets == [Path("out") / name for name in ("1.jpg", "1_2.jpg", "1_2_2.jpg", "2.png", "3.webp")]
    assert choose_targets(["1.jpg"], Path("drawn.jpg")) == [Path("drawn.jpg")]
    targets = choose_targets(
        ["1.jpg", "1.png", "1_attention.png"], Path("out"), attention=True
    )  # 1_attention.png is taken
    assert targets == [Path("out") / name for name in ("1.jpg", "1_2.png", "1_attention_2.png")]
    with pytest.raises(InputError, match=r"--input names 2 images: name a folder"):
        choose_targets(["1.jpg", "2.jpg"], Path("drawn.jpg"))


def test_a_videos_file():
    assert choose_video(Path("out"), "clip", "in/clip.avi") == Path("out/clip.mp4")
    assert choose_video(Path("out.mp4"), "clip", None) == Path("out.mp4")


@pytest.mark.slow
def test_the_terminal_shows_one_line_and_nothing_else(finder, tmp_path):
    save_image(tmp_path / "a.png")
    command = [sys.executable, "demo.py", *options_without_plugin(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1 image, ")
    assert (result.stdout.count("\n"), result.stderr) == (1, "")


def options_without_plugin(folder):
    """Of a plain Detr, since another process does not know the tests' meta-architecture."""
    from detr.checkpoint import DetrCheckpointer
    from tests.lively import build_lively

    DetrCheckpointer(build_lively(QUICKSTART, TINY), str(folder)).save("model")
    return ["--model", str(folder / "model.pth"), "--input", str(folder / "a.png"), "--output", str(folder / "out")]
