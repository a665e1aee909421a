"""tools/export_model.py: its report, what it overwrites, and what it refuses without leaving a file behind."""

import os
import sys

import pytest
import torch

from detr.checkpoint import DetrCheckpointer
from detr.engine.defaults import load_config
from detr.errors import InputError
from detr.export import export, load
from detr.export.checking import check
from detr.export.runtimes import FORMATS, RUNTIME_PACKAGES
from detr.export.writing import PACKAGES, write_graph
from tests.conftest import QUICKSTART, ROOT, as_opts
from tests.export.conftest import SETTINGS, export_model, run


def test_the_report_and_existing_folders(boxes, tmp_path, capsys):
    folder = tmp_path / "new" / "exported"
    run(QUICKSTART, "torchscript", folder, boxes[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["weights", "lively.pth"]
    assert "network.pt" in lines[2]
    assert "on 1 image of 224 x 160: logits differ by at most" in lines[3]
    assert "on 3 images of 160 x 288, 256 x 192, 128 x 128" in lines[4]
    (folder / "network.pt").write_bytes(b"")
    with pytest.raises(InputError, match="exists: name another folder, or replace it with --overwrite"):
        run(QUICKSTART, "torchscript", folder, boxes[0])
    run(QUICKSTART, "torchscript", folder, boxes[0], "--overwrite")
    load(str(folder), "cpu")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("a")
    with pytest.raises(InputError, match="holds no exported model, and would be lost"):
        run(QUICKSTART, "torchscript", precious, boxes[0], "--overwrite")
    assert os.listdir(precious) == ["thesis.txt"]


def test_a_checkpoint_is_enough_where_it_holds_its_config(boxes, tmp_path):
    weights = tmp_path / "model.pth"
    DetrCheckpointer(boxes[1], str(tmp_path)).save("model")
    export_model.main(["--model", str(weights), "--format", "torchscript", "--output", str(tmp_path / "exported")])
    assert load(str(tmp_path / "exported"), "cpu").card.class_names == boxes[1].card.class_names is not None
    with pytest.raises(InputError, match="no model is named"):
        export_model.main(["--format", "torchscript", "--output", str(tmp_path / "other")])


def test_a_graph_that_differs_from_the_model_is_refused(boxes, tmp_path, monkeypatch):
    def alter(format, part, folder):
        with torch.no_grad():
            part.module.model.class_embed.bias[0] += 0.01
        write_graph(format, part, folder)
        with torch.no_grad():
            part.module.model.class_embed.bias[0] -= 0.01

    monkeypatch.setattr("detr.export.exporting.write_graph", alter)
    with pytest.raises(InputError, match=r"on 1 image of 224 x 160 its logits differ by .*e-0[23], more than 0\.001"):
        run(QUICKSTART, "torchscript", tmp_path / "exported", boxes[0])
    assert os.listdir(tmp_path) == []


def test_a_constant_size_in_the_graph_is_noticed(scripted, boxes):
    """A graph that takes every image for one of the example's size."""
    model = load(str(scripted), "cpu")
    network = model.network
    model.network = lambda images, sizes: network(images, torch.full_like(sizes, 160))
    with pytest.raises(InputError, match="the exported graph is not the model"):
        check(model, boxes[1])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.WEIGHTS", "part.pth", "this would export random weights, class_embed "),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "'GeneralizedRCNN': only Detr can be exported"),
    ],
)
def test_other_models_are_refused(boxes, tmp_path, monkeypatch, key, value, message):
    monkeypatch.chdir(tmp_path)
    state = {name: x for name, x in boxes[1].state_dict().items() if not name.startswith("class_embed")}
    torch.save({"model": state}, "part.pth")
    with pytest.raises(InputError, match=message):
        run(QUICKSTART, "torchscript", tmp_path / "exported", [*as_opts(SETTINGS), key, value])
    assert os.listdir(tmp_path) == ["part.pth"]


def test_random_weights_are_exported_with_a_warning(tmp_path, capsys):
    run(QUICKSTART, "torchscript", tmp_path / "exported", as_opts(SETTINGS))
    captured = capsys.readouterr()
    assert "WARNING: MODEL.WEIGHTS is empty, so that random weights are exported" in captured.err
    assert captured.out.splitlines()[0].split() == ["weights", "none:", "random", "ones"]


@pytest.mark.parametrize(("format", "name"), [(format, name) for format, names in PACKAGES.items() for name in names])
def test_a_missing_package_is_reported(format, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as Python marks a module that cannot be imported
    with pytest.raises(InputError, match=rf"format {format} needs {name}, .*: pip install {name}, or .*\[export\]"):
        export(load_config(str(QUICKSTART), []), str(tmp_path / "exported"), format)


def test_packages_of_a_runtime_are_among_those_of_its_exporter():
    assert all(set(RUNTIME_PACKAGES[format]) <= set(PACKAGES[format]) for format in FORMATS)
    listed = (ROOT / "setup.py").read_text().partition("EXPORT = [")[2].partition("]")[0]
    assert all(f'"{name}>=' in listed for names in PACKAGES.values() for name in names)
