"""`converter.py`: its report, what it keeps of a model, and what it writes over."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file as save_safetensors

from detr.checkpoint import hub
from detr.checkpoint.architecture import CheckpointInfo
from detr.checkpoint.class_rows import coco_names
from detr.checkpoint.files import load_file
from detr.checkpoint.formats import to_detectron2
from detr.checkpoint.source import read
from detr.convert.verification import verify
from detr.errors import InputError
from tests.convert.conftest import run


def num_rows(path):
    return len(load_file(str(path))["model"]["class_embed.bias"])


def test_the_report(source, output, original, capsys):
    run(source, output, "--verify")
    report = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "note" not in line)
    assert report["source"].strip() == source
    assert report["format"].strip() == "original detection"
    assert report["keys mapped"].strip() == f"{len(original)} -> {len(original)}"
    assert report["DC5"].strip() == "yes"
    assert report["size"].strip().endswith("MiB")
    assert len(report["SHA-256"].strip()) == 64
    assert "logits differ by at most" in report["verified"]
    assert report["classes"].strip() == "person, bicycle, car, motorcycle, airplane and 75 more"
    assert load_file(output)["detr"] == {"dilation": True, "heads": 8, "classes": list(coco_names(80))}


def test_other_numbers_of_classes_and_queries(source, output, capsys):
    options = ["--num-classes", 3, "--num-queries", 4]
    run(source, output, *options)
    out = capsys.readouterr().out
    assert "class rows 92 -> 81" in out
    assert "class_embed: 81 rows in the weights, 4 wanted: no-object is kept" in out
    assert "query_embed: 10 queries in the weights, 4 wanted: the first 4 are kept" in out
    assert "left out: args, epoch (of a training" in out
    first = load_file(output)["model"]
    assert first["class_embed.bias"].shape == (4,)
    run(source, output, *options, "--overwrite")
    again = load_file(output)["model"]
    assert all(torch.equal(first[key], again[key]) for key in first)  # new rows are drawn from a fixed seed


def test_an_original_output_counts_its_own_classes(source, original, output):
    run(source, output, "--to", "original", "--num-classes", 91)
    assert torch.equal(load_file(output)["model"]["class_embed.weight"], original["class_embed.weight"])
    run(source, output, "--to", "original", "--num-classes", 80, "--overwrite")
    assert num_rows(output) == 81


@pytest.mark.slow
def test_ninety_one_classes_of_a_custom_transformers_model_are_kept(source, tmp_path, output):
    folder = tmp_path / "hf"
    run(source, folder, "--to", "transformers")
    config = json.loads((folder / "config.json").read_text())
    assert config["dilation"] is True
    assert config["backbone"] == "resnet50"  # timm's, which has a dilation
    assert config["id2label"]["1"] == "person"
    run(folder, output)
    assert num_rows(output) == 81
    config["id2label"] = {str(i): f"bird {i}" for i in range(91)}
    (folder / "config.json").write_text(json.dumps(config))
    run(folder, output, "--overwrite", "--verify")
    assert num_rows(output) == 92
    # and on the way back they keep their names and their rows
    again = tmp_path / "again"
    run(output, again, "--to", "transformers", "--verify")
    assert json.loads((again / "config.json").read_text())["id2label"] == config["id2label"]
    first, second = (load_file(str(path / "model.safetensors")) for path in (folder, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_own_classes_stay_own(original, tmp_path, output):
    """80 classes of an original are not COCO's, which would be 91; and 91 may be a user's own."""
    own = original | {"class_embed.weight": torch.randn(81, 64), "class_embed.bias": torch.randn(81)}
    torch.save({"model": own}, tmp_path / "own.pth")
    run(tmp_path / "own.pth", output, "--to", "original")
    back = load_file(output)["model"]
    assert all(torch.equal(back[key], own[key]) for key in own)
    torch.save({"model": original}, tmp_path / "ninety-one.pth")
    options = [tmp_path / "ninety-one.pth", output, "--overwrite", "--own-classes"]
    run(*options)
    assert num_rows(output) == 92
    run(*options, "--verify")
    # 80 own classes of a Detectron2 file, which would be taken for COCO's, and are remembered
    torch.save({"model": to_detectron2(own).state}, tmp_path / "ours.pth")
    run(tmp_path / "ours.pth", tmp_path / "noted.pth", "--own-classes")
    for name, rows in (("ours.pth", 92), ("noted.pth", 81)):
        run(tmp_path / name, output, "--to", "original", "--overwrite")
        assert num_rows(output) == rows


@pytest.mark.slow
def test_heads_are_reported_or_given(original, tmp_path, output, capsys):
    torch.save({"model": original}, tmp_path / "plain.pth")
    run(tmp_path / "plain.pth", tmp_path / "hf", "--to", "transformers")
    assert "8 (--heads)" in capsys.readouterr().out
    run(tmp_path / "plain.pth", output, "--heads", 4)
    run(output, tmp_path / "hf", "--to", "transformers", "--overwrite", "--verify")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["encoder_attention_heads"] == 4


def test_dilation_is_known_from_a_released_file_name(original, tmp_path):
    name = hub.entry("detr_R_50_DC5").url.rpartition("/")[2]
    torch.save({"model": original}, tmp_path / name)
    assert read(str(tmp_path / name)).info == CheckpointInfo(dilation=True, heads=8)
    torch.save({"model": original}, tmp_path / "renamed.pth")
    assert read(str(tmp_path / "renamed.pth")).info == CheckpointInfo()


@pytest.mark.slow
def test_files_of_transformers_itself(tmp_path, output, monkeypatch):
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
        run(tmp_path / name, output, "--verify", "--overwrite")
        one = load_file(output)
        assert one["detr"]["dilation"] == (name == "timm")
        model.save_pretrained(tmp_path / f"{name} in parts", max_shard_size="20MB")
        run(tmp_path / f"{name} in parts", output, "--overwrite")
        assert all(torch.equal(value, load_file(output)["model"][key]) for key, value in one["model"].items())
    parts = sorted((tmp_path / "own in parts").glob("model-*.safetensors"))
    assert len(parts) > 1
    save_safetensors({"conv1.weight": torch.ones(1)}, parts[0])
    with pytest.raises(InputError, match=r"index\.json promises .*, which does not hold it: is that one whole"):
        run(tmp_path / "own in parts", output, "--overwrite")
    (tmp_path / "bin").mkdir()
    torch.save(load_file(str(tmp_path / "own" / "model.safetensors")), tmp_path / "bin" / "pytorch_model.bin")
    shutil.copy(tmp_path / "own" / "config.json", tmp_path / "bin")
    run(tmp_path / "bin", output, "--overwrite", "--verify")


def test_an_incomplete_source_is_converted_with_a_note_or_refused(original, tmp_path, output, capsys):
    part = {key: value for key, value in original.items() if not key.startswith("class_embed.")}
    path = tmp_path / "part.pth"
    torch.save({"model": part}, path)
    run(path, output)
    assert "INCOMPLETE: 2 tensors that a whole DETR has are missing, the first: class_embed" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"part\.pth lacks 2 tensors that a whole DETR has, the first: class_embed"):
        run(path, tmp_path / "hf", "--to", "transformers")
    with pytest.raises(InputError, match="lacks 2 tensors"):
        run(path, output, "--overwrite", "--num-classes", 3)


def test_verification_notices_a_wrong_tensor(source, output):
    run(source, output)
    altered = read(source)
    altered.state["transformer.decoder.layers.0.multihead_attn.in_proj_bias"][:64] += 0.1
    with pytest.raises(InputError, match=r"output\.pth is written, but does not do what .* does: logits differ"):
        verify(altered, output, altered.info)


def test_a_folder_is_replaced_as_a_whole(source, tmp_path):
    folder = tmp_path / "hf"
    run(source, folder, "--to", "transformers")
    (folder / "notes.txt").write_text("a user's own")
    with pytest.raises(InputError, match=r"holds notes\.txt, which would be lost"):
        run(source, folder, "--to", "transformers", "--overwrite")
    (folder / "notes.txt").unlink()
    (folder / "model.safetensors").write_text("of an earlier conversion")
    run(source, folder, "--to", "transformers", "--overwrite")
    assert load_file(str(folder / "model.safetensors"))
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(os.listdir(tmp_path)) == ["hf", "original.pth"]


def test_existing_files_are_kept(source, output, tmp_path):
    run(source, output)
    with pytest.raises(InputError, match=r"output\.pth exists: .* add --overwrite"):
        run(source, output)
    run(source, output, "--overwrite")
    before = os.stat(source).st_mtime_ns
    with pytest.raises(InputError, match="is the source"):
        run(source, source, "--overwrite")
    assert os.stat(source).st_mtime_ns == before
    for to in ("original", "transformers"):
        with pytest.raises(InputError, match=r"is there and is not|holds output\.pth, which would be lost"):
            run(source, tmp_path / "new", "--to", to, "--overwrite")
    assert os.listdir(tmp_path / "new") == ["output.pth"]


def test_a_link_stays_a_link_and_a_device_a_device(source, tmp_path):
    os.symlink("real.pth", tmp_path / "link.pth")
    run(source, tmp_path / "link.pth", "--overwrite")
    assert (tmp_path / "link.pth").is_symlink()
    assert load_file(str(tmp_path / "real.pth"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe is there and is not a file"):
        run(source, tmp_path / "pipe", "--overwrite")
