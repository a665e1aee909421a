import dataclasses
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import detr
from detr import model_zoo
from detr.checkpoint.hub import RELEASED, cache_path
from detr.errors import InputError
from tests.conftest import ROOT, make_input
from tests.parity.oracle import lively_original, original_checkpoint
from tests.parity.pairs import config, converted

BOXES = ["detr_R_50", "detr_R_50_DC5", "detr_R_101", "detr_R_101_DC5"]
PANOPTIC = ["detr_R_50_panoptic", "detr_R_50_DC5_panoptic", "detr_R_101_panoptic"]


def put_weights(name, content, folder, monkeypatch):
    """Puts a checkpoint where the released one of `name` goes; the table then has its hash."""
    source = folder / "weights.pth"
    torch.save(content, source)
    digits = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    url = f"https://dl.fbaipublicfiles.com/detr/{name}-{digits}.pth"
    monkeypatch.setitem(RELEASED, name, dataclasses.replace(RELEASED[name], url=url))
    path = Path(cache_path(url))
    path.parent.mkdir(parents=True)
    shutil.move(source, path)


def test_the_seven_released_models_are_named():
    assert model_zoo.names() == BOXES + PANOPTIC
    assert detr.model_zoo is model_zoo


@pytest.mark.parametrize(
    ("name", "file", "digits", "published"),
    [
        ("detr_R_50_DC5", "detr-r50-dc5-f0fb7ef5.pth", "f0fb7ef5", (43.3, None, None)),
        ("detr_R_101_panoptic", "detr-r101-panoptic-40021d53.pth", "40021d53", (40.1, 33.0, 45.1)),
    ],
)
def test_an_entry_holds_what_was_published(name, file, digits, published):
    entry = model_zoo.entry(name)
    assert (entry.name, entry.url, entry.hash_prefix) == (name, f"https://dl.fbaipublicfiles.com/detr/{file}", digits)
    assert (entry.box_ap, entry.mask_ap, entry.pq) == published


@pytest.mark.parametrize("function", [model_zoo.entry, model_zoo.get_config, model_zoo.get])
def test_an_unknown_name_is_reported_with_similar_ones(function):
    with pytest.raises(InputError, match=r"named 'detr_R50_DC5'; did you mean detr_R_50_DC5.*\? There are detr_R_50, "):
        function("detr_R50_DC5")
    with pytest.raises(InputError, match=r"named 'yolo'\. There are detr_R_50, "):
        function("yolo")


@pytest.mark.parametrize("name", BOXES + PANOPTIC)
def test_a_config_is_that_of_the_model(name):
    cfg = model_zoo.get_config(name)
    resnet = cfg.MODEL.RESNETS
    found = (cfg.MODEL.WEIGHTS, resnet.DEPTH, resnet.RES5_DILATION, cfg.MODEL.MASK_ON, cfg.MODEL.DETR.NUM_CLASSES)
    panoptic = "panoptic" in name
    depth, dilation = 101 if "101" in name else 50, 2 if "DC5" in name else 1
    assert found == (f"detr://{name}", depth, dilation, panoptic, model_zoo.entry(name).num_classes)
    assert model_zoo.entry(name).num_classes == (133 if panoptic else 80)
    assert not cfg.is_frozen()


@pytest.mark.parametrize("name", BOXES + PANOPTIC)
def test_fresh_models_have_the_published_size_and_ask_for_nothing(name, cache):
    model = model_zoo.get(name, pretrained=False, device="cpu")
    assert not model.training
    # Rows of unused COCO ids, which the released class heads have and these do not, weigh up to 0.03 millions.
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(model_zoo.entry(name).parameters, abs=0.04)
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_released_weights_give_the_released_model(cache, tmp_path, monkeypatch):
    original, _, _ = lively_original("detr_R_50")
    put_weights("detr_R_50", original_checkpoint(original), tmp_path, monkeypatch)
    model = model_zoo.get("detr_R_50", device="cpu")
    expected = converted(original, config("detr_R_50")).state_dict()
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    with torch.no_grad():
        (output,) = model([make_input([], [])])
    assert len(output["instances"]) == 100


def test_another_number_of_classes_starts_a_fresh_head(cache, tmp_path, monkeypatch):
    released = model_zoo.get("detr_R_50", pretrained=False, device="cpu")
    put_weights("detr_R_50", {"model": released.state_dict()}, tmp_path, monkeypatch)
    model = model_zoo.get("detr_R_50", device="cpu", num_classes=3)
    assert model.class_embed.out_features == 4
    assert torch.equal(model.query_embed.weight, released.query_embed.weight)


@pytest.mark.slow
def test_a_built_package_brings_its_configs_and_templates(tmp_path):
    for name in ("detr", "configs"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    built = tmp_path / "built"
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(built)]
    subprocess.run(command, cwd=tmp_path / "source", check=True, capture_output=True, timeout=60)
    shutil.rmtree(tmp_path / "source")
    for folder, source in (("configs", ROOT / "configs"), ("report", ROOT / "detr" / "report")):
        there = {path.relative_to(built / "detr" / folder) for path in (built / "detr" / folder).rglob("*.*")}
        assert there == {path.relative_to(source) for path in source.rglob("*.*") if path.suffix != ".pyc"}
    script = "import detr; print(detr.__file__); print(detr.model_zoo.get_config('detr_R_101_DC5').MODEL.DETR.NHEADS)"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env={"PYTHONPATH": str(built), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stdout.split() == [str(built / "detr" / "__init__.py"), "8"]
