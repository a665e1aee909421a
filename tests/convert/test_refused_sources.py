"""Sources, outputs and options that `converter.py` refuses: in one line, and without a file left behind."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr.checkpoint.files import load_file
from detr.errors import InputError
from tests.checkpoint.samples import Mkdir
from tests.conftest import ROOT
from tests.convert.conftest import run


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights: its state dict is empty"),
        ({"model": {}}, "holds no weights"),
        ({"model": {"a": "text"}}, "holds a str under 'a', where a tensor belongs"),
        ({"model": {"head.weight": torch.ones(2)}}, r"no format that is known here: the first keys are head\.weight"),
        (
            {"model": {"a": torch.tensor([1, float("nan")])}},
            "holds NaN or infinity in 1 of its 1 tensors, the first: a",
        ),
        ([1], "holds a list"),
        (b"", ""),
        (b"hello", ""),
        (b"PK\x03\x04 cut off", ""),
    ],
    ids=str,
)
def test_bad_files(content, message, tmp_path, output):
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=rf"bad\.pth.*{message}") as error:
        run(path, output)
    assert "\n" not in str(error.value)
    assert not os.path.exists(output)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "cut.pkl", "cut.bin"])
def test_truncated_files(name, source, tmp_path, output):
    path = tmp_path / name
    path.write_bytes(Path(source).read_bytes()[:5000])
    with pytest.raises(InputError, match=name) as error:
        run(path, output)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("detr_R_51", r"there is no file or folder detr_R_51; did you mean detr://detr_R_50\?"),
        ("torchvision://resnet1010", "no ImageNet weights named 'resnet1010'"),
        ("detr://detr_R_51", "no released model is named 'detr_R_51'; did you mean detr_R_50"),
        (ROOT / "configs", "holds no weights"),
        ("http://127.0.0.1:9/detr.pth", "cannot download the weights http://127.0.0.1:9/detr.pth"),
    ],
)
def test_unknown_names(name, message, output):
    with pytest.raises(InputError, match=message):
        run(name, output)


@pytest.mark.parametrize(
    "setting",
    [
        {"activation_function": "gelu"},
        {"decoder_attention_heads": 4},
        {"model_type": "conditional_detr"},
        {"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}},
    ],
)
def test_a_transformers_model_of_another_function(setting, source, tmp_path, output):
    folder = tmp_path / "hf"
    run(source, folder, "--to", "transformers")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **setting}))
    with pytest.raises(InputError, match=r"config\.json beside .* has (activation|decoder|model_type|downsample)"):
        run(folder, output)


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_a_malicious_file(name, tmp_path, output):
    target, path = tmp_path / "created", tmp_path / name
    content = {"model": Mkdir(str(target))}
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=rf"{name} .* asks for the class posix\.mkdir"):
        run(path, output)
    assert not target.exists()


class Note:
    """A class of a user's own, in an old checkpoint."""


def test_unsafe_load_warns_and_reads_any_class(original, tmp_path, output, capsys):
    path = tmp_path / "old.pth"
    torch.save({"model": original, "note": Note()}, path)
    with pytest.raises(InputError, match=rf"asks for the class {Note.__module__}\.Note"):
        run(path, output)
    run(path, output, "--unsafe-load")
    assert "WARNING: --unsafe-load runs whatever code the file holds" in capsys.readouterr().err
    assert load_file(output)["model"]


@pytest.mark.parametrize(
    ("output", "to", "message"),
    [
        ("file/x.pth", "detectron2", r"cannot write .*file/x\.pth "),
        ("file/x", "transformers", "cannot write .*file/x "),
        ("x.pkl", "detectron2", r"let its name end in \.pth"),
    ],
)
def test_outputs_that_cannot_be_written(source, tmp_path, output, to, message):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=message):
        run(source, tmp_path / output, "--to", to)
    assert sorted(os.listdir(tmp_path)) == ["file", "original.pth"]


def test_a_conversion_that_fails_leaves_nothing(original, tmp_path):
    path = tmp_path / "pre_norm.pth"
    torch.save({"model": original | {"transformer.encoder.norm.weight": torch.ones(64)}}, path)
    with pytest.raises(InputError, match=r"pre-norm only in the original format; the first: transformer\."):
        run(path, tmp_path / "hf", "--to", "transformers")
    assert os.listdir(tmp_path) == ["pre_norm.pth"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--verify", "--num-classes", "3"], "--verify compares whole models"),
        (["--backbone", "timm"], "--backbone is for --to transformers"),
        (["--num-classes", "0"], "--num-classes: must be a number from 1 to 100000"),
        (["--num-queries", "many"], "--num-queries: must be a number from 1 to 100000"),
        (["--to", "onnx"], "invalid choice"),
    ],
)
def test_options_that_contradict_each_other(options, message, source, output, capsys):
    with pytest.raises(SystemExit):
        run(source, output, *options)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_script_ends_with_one_line(tmp_path):
    command = [sys.executable, "converter.py", "--source_model", "missing.pth", "--output_model", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: there is no file or folder missing.pth: check the path")
    assert done.stdout == ""
