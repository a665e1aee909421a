"""`converter.py` as a user calls it: its report, what it refuses, and that it leaves nothing half-written."""

import argparse
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file as save_safetensors

import converter
from detr.checkpoint import hub
from detr.checkpoint.architecture import CheckpointInfo
from detr.checkpoint.files import load_file
from detr.checkpoint.formats import to_detectron2
from detr.checkpoint.source import read
from detr.convert.verification import verify
from detr.errors import InputError
from tests.checkpoint.samples import Mkdir, small_original
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def original():
    return small_original()


@pytest.fixture
def source(original, tmp_path):
    path = str(tmp_path / "original.pth")
    torch.save({"model": original, "args": argparse.Namespace(dilation=True, nheads=8), "epoch": 3}, path)
    return path


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "new" / "output.pth")


def run(*args):
    converter.main([str(arg) for arg in args])


def test_the_report_tells_what_was_done(source, output, original, capsys):
    run("--source_model", source, "--output_model", output, "--verify")
    report = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "note" not in line)
    assert report["source"].strip() == source
    assert report["format"].strip() == "original detection"
    assert report["keys mapped"].strip() == f"{len(original)} -> {len(original)}"
    assert report["DC5"].strip() == "yes"
    assert report["size"].strip().endswith("MiB")
    assert len(report["SHA-256"].strip()) == 64
    assert "logits differ by at most" in report["verified"]
    assert load_file(output)["detr"] == {"dilation": True, "heads": 8}


def test_classes_queries_and_a_training_are_noted(source, output, capsys):
    run("--source_model", source, "--output_model", output, "--num-classes", 3, "--num-queries", 4)
    out = capsys.readouterr().out
    assert "class rows 92 -> 81" in out
    assert "class_embed: 81 rows in the weights, 4 wanted: no-object is kept" in out
    assert "query_embed: 10 queries in the weights, 4 wanted: the first 4 are kept" in out
    assert "left out: args, epoch (of a training" in out
    first = load_file(output)["model"]
    assert first["class_embed.bias"].shape == (4,)
    run("--source_model", source, "--output_model", output, "--num-classes", 3, "--num-queries", 4, "--overwrite")
    again = load_file(output)["model"]
    assert all(torch.equal(first[key], again[key]) for key in first)  # what is fresh is always the same


def test_ninety_one_classes_of_a_custom_transformers_model_are_kept(source, tmp_path, output):
    folder = tmp_path / "hf"
    run("--source_model", source, "--output_model", folder, "--to", "transformers")
    config = json.loads((folder / "config.json").read_text())
    assert config["dilation"] is True
    assert config["backbone"] == "resnet50"  # timm's, which has a dilation
    assert config["id2label"]["1"] == "person"
    run("--source_model", folder, "--output_model", output)
    assert load_file(output)["model"]["class_embed.bias"].shape == (81,)
    config["id2label"] = {str(i): f"bird {i}" for i in range(91)}
    (folder / "config.json").write_text(json.dumps(config))
    run("--source_model", folder, "--output_model", output, "--overwrite", "--verify")
    assert load_file(output)["model"]["class_embed.bias"].shape == (92,)
    # and on the way back they keep their names and their rows
    again = tmp_path / "again"
    run("--source_model", output, "--output_model", again, "--to", "transformers", "--verify")
    assert json.loads((again / "config.json").read_text())["id2label"] == config["id2label"]
    first, second = (load_file(str(path / "model.safetensors")) for path in (folder, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_own_classes_stay_own(original, tmp_path, output):
    """80 classes of an original are not COCO's, which would be 91; and 91 may be somebody's own."""
    own = original | {"class_embed.weight": torch.randn(81, 64), "class_embed.bias": torch.randn(81)}
    torch.save({"model": own}, tmp_path / "own.pth")
    run("--source_model", tmp_path / "own.pth", "--output_model", output, "--to", "original")
    back = load_file(output)["model"]
    assert all(torch.equal(back[key], own[key]) for key in own)
    torch.save({"model": original}, tmp_path / "ninety-one.pth")
    options = ["--source_model", tmp_path / "ninety-one.pth", "--output_model", output, "--overwrite", "--own-classes"]
    run(*options)
    assert load_file(output)["model"]["class_embed.bias"].shape == (92,)
    run(*options, "--verify")
    # 80 own classes of a Detectron2 file, which would be taken for COCO's, and are remembered
    torch.save({"model": to_detectron2(own).state}, tmp_path / "ours.pth")
    run("--source_model", tmp_path / "ours.pth", "--output_model", tmp_path / "noted.pth", "--own-classes")
    for source, rows in (("ours.pth", 92), ("noted.pth", 81)):
        run("--source_model", tmp_path / source, "--output_model", output, "--to", "original", "--overwrite")
        assert len(load_file(output)["model"]["class_embed.bias"]) == rows


def test_heads_are_told_or_asked_for(original, tmp_path, output, capsys):
    torch.save({"model": original}, tmp_path / "plain.pth")
    run("--source_model", tmp_path / "plain.pth", "--output_model", tmp_path / "hf", "--to", "transformers")
    assert "taken as 8 (--heads)" in capsys.readouterr().out
    run("--source_model", tmp_path / "plain.pth", "--output_model", output, "--heads", 4)
    run("--source_model", output, "--output_model", tmp_path / "hf", "--to", "transformers", "--overwrite", "--verify")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["encoder_attention_heads"] == 4


def test_an_incomplete_source_is_told(original, tmp_path, output, capsys):
    part = {key: value for key, value in original.items() if not key.startswith("class_embed.")}
    torch.save({"model": part}, tmp_path / "part.pth")
    run("--source_model", tmp_path / "part.pth", "--output_model", output)
    assert (
        "INCOMPLETE: 2 tensors that a whole DETR has are missing, the first: class_embed.bias"
        in capsys.readouterr().out
    )
    with pytest.raises(
        InputError, match=r"part\.pth lacks 2 tensors that a whole DETR has, the first: class_embed\.bias"
    ):
        run("--source_model", tmp_path / "part.pth", "--output_model", tmp_path / "hf", "--to", "transformers")
    with pytest.raises(InputError, match="lacks 2 tensors"):
        run("--source_model", tmp_path / "part.pth", "--output_model", output, "--overwrite", "--num-classes", 3)


def test_what_transformers_itself_writes_is_read(tmp_path, output, monkeypatch):
    """In one file and in several, by torch.save too, on both backbones."""
    import transformers

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    resnet = transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])
    backbones = {
        "own": {"use_timm_backbone": False, "backbone": None, "backbone_config": resnet},
        "timm": {"use_timm_backbone": True, "backbone": "resnet50", "dilation": True},
    }
    for name, backbone in backbones.items():
        config = transformers.DetrConfig(**sizes, **backbone, use_pretrained_backbone=False, num_labels=5)
        model = transformers.DetrForObjectDetection(config)
        model.save_pretrained(tmp_path / name)
        run("--source_model", tmp_path / name, "--output_model", output, "--verify", "--overwrite")
        one = load_file(output)
        assert one["detr"]["dilation"] == (name == "timm")
        model.save_pretrained(tmp_path / f"{name} in parts", max_shard_size="20MB")
        run("--source_model", tmp_path / f"{name} in parts", "--output_model", output, "--overwrite")
        assert all(torch.equal(value, load_file(output)["model"][key]) for key, value in one["model"].items())
    parts = sorted((tmp_path / "own in parts").glob("model-*.safetensors"))
    assert len(parts) > 1
    save_safetensors({"conv1.weight": torch.ones(1)}, parts[0])
    with pytest.raises(InputError, match=r"index\.json promises .*, which does not hold it: is that one whole"):
        run("--source_model", tmp_path / "own in parts", "--output_model", output, "--overwrite")
    (tmp_path / "bin").mkdir()
    torch.save(load_file(str(tmp_path / "own" / "model.safetensors")), tmp_path / "bin" / "pytorch_model.bin")
    shutil.copy(tmp_path / "own" / "config.json", tmp_path / "bin")
    run("--source_model", tmp_path / "bin", "--output_model", output, "--overwrite", "--verify")


@pytest.mark.parametrize(
    "setting",
    [
        {"activation_function": "gelu"},
        {"decoder_attention_heads": 4},
        {"model_type": "conditional_detr"},
        {"backbone_config": {"model_type": "resnet", "downsample_in_bottleneck": True}},
    ],
)
def test_a_transformers_model_of_another_function_is_refused(setting, source, tmp_path, output):
    folder = tmp_path / "hf"
    run("--source_model", source, "--output_model", folder, "--to", "transformers")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **setting}))
    with pytest.raises(InputError, match=r"config\.json beside .* has (activation|decoder|model_type|downsample)"):
        run("--source_model", folder, "--output_model", output)


def test_a_folder_is_replaced_as_a_whole(source, tmp_path):
    folder = tmp_path / "hf"
    run("--source_model", source, "--output_model", folder, "--to", "transformers")
    (folder / "notes.txt").write_text("somebody's own")
    with pytest.raises(InputError, match=r"holds notes\.txt, which would be lost"):
        run("--source_model", source, "--output_model", folder, "--to", "transformers", "--overwrite")
    (folder / "notes.txt").unlink()
    (folder / "model.safetensors").write_text("of an earlier conversion")
    run("--source_model", source, "--output_model", folder, "--to", "transformers", "--overwrite")
    assert load_file(str(folder / "model.safetensors"))
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(os.listdir(tmp_path)) == ["hf", "original.pth"]


def test_what_exists_is_not_written_over(source, output, tmp_path):
    run("--source_model", source, "--output_model", output)
    with pytest.raises(InputError, match=r"output\.pth exists: .* add --overwrite"):
        run("--source_model", source, "--output_model", output)
    run("--source_model", source, "--output_model", output, "--overwrite")
    before = os.stat(source).st_mtime_ns
    with pytest.raises(InputError, match="is the source"):
        run("--source_model", source, "--output_model", source, "--overwrite")
    assert os.stat(source).st_mtime_ns == before
    for to in ("original", "transformers"):
        with pytest.raises(InputError, match=r"is there and is not|holds output\.pth, which would be lost"):
            run("--source_model", source, "--output_model", tmp_path / "new", "--to", to, "--overwrite")
    assert os.listdir(tmp_path / "new") == ["output.pth"]


def test_a_link_stays_a_link_and_a_device_a_device(source, tmp_path):
    os.symlink("real.pth", tmp_path / "link.pth")
    run("--source_model", source, "--output_model", tmp_path / "link.pth", "--overwrite")
    assert (tmp_path / "link.pth").is_symlink()
    assert load_file(str(tmp_path / "real.pth"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is there and is not a file"):
        run("--source_model", source, "--output_model", tmp_path / "pipe", "--overwrite")


def test_the_output_counts_its_own_classes(source, original, output):
    run("--source_model", source, "--output_model", output, "--to", "original", "--num-classes", 91)
    assert torch.equal(load_file(output)["model"]["class_embed.weight"], original["class_embed.weight"])
    run("--source_model", source, "--output_model", output, "--to", "original", "--num-classes", 80, "--overwrite")
    assert load_file(output)["model"]["class_embed.bias"].shape == (81,)


def test_what_cannot_be_written_is_told(source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for output, to in (("file/x.pth", "detectron2"), ("file/x", "transformers")):
        with pytest.raises(InputError, match=f"cannot write .*{output} "):
            run("--source_model", source, "--output_model", tmp_path / output, "--to", to)
    with pytest.raises(InputError, match=r"let its name end in \.pth"):
        run("--source_model", source, "--output_model", tmp_path / "x.pkl")
    assert sorted(os.listdir(tmp_path)) == ["file", "original.pth"]


def test_a_failure_leaves_nothing(original, tmp_path):
    path = tmp_path / "pre_norm.pth"
    torch.save({"model": original | {"transformer.encoder.norm.weight": torch.ones(64)}}, path)
    with pytest.raises(InputError, match=r"pre-norm in the original alone; the first: transformer\.encoder\.norm"):
        run("--source_model", path, "--output_model", tmp_path / "hf", "--to", "transformers")
    assert os.listdir(tmp_path) == ["pre_norm.pth"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no weights: its state dict is empty"),
        ({"model": {}}, "holds no weights"),
        ({"model": {"a": "text"}}, "holds a str under 'a', where a tensor belongs"),
        ({"model": {"head.weight": torch.ones(2)}}, r"no format that is known here: the first keys are head\.weight"),
        (
            {"model": {"a": torch.tensor([1.0, float("nan")])}},
            "holds NaN or infinity in 1 of its 1 tensors, the first: a",
        ),
        ([1], "holds a list"),
    ],
    ids=str,
)
def test_bad_files_get_one_line(content, message, tmp_path, output):
    path = tmp_path / "bad.pth"
    torch.save(content, path)
    with pytest.raises(InputError, match=rf"bad\.pth.*{message}") as error:
        run("--source_model", path, "--output_model", output)
    assert "\n" not in str(error.value)
    assert not os.path.exists(output)


@pytest.mark.parametrize("name", ["cut.pth", "cut.safetensors", "cut.pkl", "empty.pth", "text.bin", "zip.pth"])
def test_damaged_files_get_one_line(name, source, tmp_path, output):
    path = tmp_path / name
    cut = Path(source).read_bytes()[:5000]
    content = {"empty.pth": b"", "text.bin": b"hello", "zip.pth": b"PK\x03\x04 cut off"}.get(name, cut)
    path.write_bytes(content)
    with pytest.raises(InputError, match=name) as error:
        run("--source_model", path, "--output_model", output)
    assert "\n" not in str(error.value)


def test_names_that_stand_for_nothing(tmp_path, output):
    for name, message in (
        ("detr_R_51", r"there is no file or folder detr_R_51; did you mean detr://detr_R_50\?"),
        ("torchvision://resnet1010", "no ImageNet weights named 'resnet1010'"),
        ("detr://detr_R_51", "no released model is named 'detr_R_51'; did you mean detr_R_50"),
        (str(tmp_path), "holds no weights"),
        ("http://127.0.0.1:9/detr.pth", "cannot download the weights http://127.0.0.1:9/detr.pth"),
    ):
        with pytest.raises(InputError, match=message):
            run("--source_model", name, "--output_model", output)


def test_a_released_file_tells_that_it_is_dc5(original, tmp_path, output):
    name = hub.entry("detr_R_50_DC5").url.rpartition("/")[2]
    torch.save({"model": original}, tmp_path / name)
    assert read(str(tmp_path / name)).info == CheckpointInfo(dilation=True, heads=8)
    torch.save({"model": original}, tmp_path / "renamed.pth")
    assert read(str(tmp_path / "renamed.pth")).info == CheckpointInfo()


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_a_malicious_file_is_refused(name, tmp_path, output):
    target, path = tmp_path / "created", tmp_path / name
    content = {"model": Mkdir(str(target))}
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=rf"{name} is refused, because it asks for the class posix\.mkdir"):
        run("--source_model", path, "--output_model", output)
    assert not target.exists()


class Note:
    """A class of somebody's own, in an old checkpoint."""


def test_unsafe_load_is_loud_and_loads_what_is_refused_otherwise(original, tmp_path, output, capsys):
    path = tmp_path / "old.pth"
    torch.save({"model": original, "note": Note()}, path)
    with pytest.raises(InputError, match=r"asks for the class tests\.convert\.test_converter\.Note"):
        run("--source_model", path, "--output_model", output)
    run("--source_model", path, "--output_model", output, "--unsafe-load")
    assert "WARNING: --unsafe-load runs whatever code the file holds" in capsys.readouterr().err
    assert load_file(output)["model"]


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
def test_options_that_make_no_sense_together(options, message, source, output, capsys):
    with pytest.raises(SystemExit):
        run("--source_model", source, "--output_model", output, *options)
    assert message in capsys.readouterr().err


def test_verification_notices_a_wrong_tensor(source, output):
    run("--source_model", source, "--output_model", output)
    altered = read(source)
    altered.state["transformer.decoder.layers.0.multihead_attn.in_proj_bias"][:64] += 0.1
    with pytest.raises(InputError, match=r"output\.pth is written, but does not do what .* does: logits differ"):
        verify(altered, output, altered.info)


def test_bad_input_ends_the_script_with_one_line(tmp_path):
    command = [sys.executable, "converter.py", "--source_model", "missing.pth", "--output_model", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: there is no file or folder missing.pth: check the path")
    assert done.stdout == ""
