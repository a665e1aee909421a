"""tools/report.py: from a run's folder to a page, or to one line that says what is wrong."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from detr.engine import Trainer
from detr.errors import InputError
from tests.conftest import ROOT


def _script():
    spec = importlib.util.spec_from_file_location("report", ROOT / "tools" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


report = _script()


@pytest.fixture
def run(shapes_root, tiny_config, tmp_path) -> Path:
    """A run that finds every object of shapes_val where it is, and no star."""
    truth = json.loads((shapes_root / "shapes" / "annotations" / "instances_val.json").read_text())
    star = next(x["id"] for x in truth["categories"] if x["name"] == "star")
    keys = ("image_id", "category_id", "bbox")
    found = [{key: x[key] for key in keys} | {"score": 0.9} for x in truth["annotations"] if x["category_id"] != star]
    folder = tmp_path / "run"
    (folder / "inference").mkdir(parents=True)
    (folder / "inference" / "coco_instances_results.json").write_text(json.dumps(found))
    (folder / "config.yaml").write_text(tiny_config({"INPUT.MIN_SIZE_TEST": 64}).dump())
    return folder


def cells(page: str, name: str) -> list[str]:
    """The first row of the page that begins with ``name``."""
    row = re.search(rf"<tr><th[^>]*>{name}</th>(.*?)</tr>", page, re.DOTALL)[1]
    return re.findall(r"<td[^>]*>(.*?)</td>", row)


def test_the_page_says_what_the_run_finds(run, capsys):
    report.main([str(run), "--worst", "2"])
    page = (run / "report.html").read_text(encoding="utf-8")
    assert cells(page, "square")[1:4] == ["100.0", "100.0", "100.0"]
    assert cells(page, "star")[1:4] == ["0.0", "0.0", "0.0"]
    assert page.count("data:image/jpeg") == 4
    assert "MODEL.DETR.HIDDEN_DIM" in page
    first, *findings = capsys.readouterr().out.splitlines()
    assert first == f"{run / 'report.html'}: box AP 75.0, AP50 75.0 on shapes_val"
    assert "star" in " ".join(findings)


def test_a_data_set_of_ones_own_without_a_config(run, shapes_root, tmp_path):
    shapes = shapes_root / "shapes"
    annotations, images = shapes / "annotations" / "instances_val.json", shapes / "val"
    page = tmp_path / "pages" / "mine.html"
    (run / "config.yaml").unlink()  # nor is it needed
    data = ["--annotations", str(annotations), "--images", str(images)]
    report.main([str(run), *data, "--output", str(page), "--worst", "0"])
    text = page.read_text(encoding="utf-8")
    assert cells(text, "star")[1] == "0.0"
    assert "data:image" not in text


@pytest.mark.slow
def test_a_run_of_train_net(shapes_root, run_config):
    cfg = run_config({"DATALOADER.NUM_WORKERS": 0, "TEST.EVAL_PERIOD": 2})
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (Path(cfg.OUTPUT_DIR) / "config.yaml").write_text(cfg.dump())
    report.main([cfg.OUTPUT_DIR])
    page = (Path(cfg.OUTPUT_DIR) / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 2
    assert "Training loss, summed" in page


def test_a_wrong_number_of_images(run):
    with pytest.raises(InputError, match="--worst is -1"):
        report.main([str(run), "--worst", "-1"])
    assert not (run / "report.html").exists()


def test_without_jinja2_one_line_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.delitem(sys.modules, "detr.report.page", raising=False)
    with pytest.raises(InputError, match=r"pip install -e '.\[report\]'"):
        report.main([str(run)])
