"""The tools that look at data and models, on real photographs."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import demo
from detr.checkpoint import DetrCheckpointer
from tests.conftest import QUICKSTART, ROOT, TINY
from tests.lively import build_lively
from tools import browse_data, explore_queries, report

PHOTOS = ROOT.parent / "shared" / "datasets" / "tiny" / "coco"
ANNOTATIONS, IMAGES = PHOTOS / "annotations" / "instances_val2017.json", PHOTOS / "val2017"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no real photos in {PHOTOS}"),
]


@pytest.fixture(scope="module")
def weights(shapes_root, tmp_path_factory) -> str:
    """A checkpoint of a model that was never trained, and predicts many things."""
    folder = tmp_path_factory.mktemp("model")
    DetrCheckpointer(build_lively(QUICKSTART, TINY), str(folder)).save("model_final")
    return str(folder / "model_final.pth")


def test_photos_are_browsed_with_all_of_their_objects(tmp_path, capsys, registered):
    registered.append(browse_data.NAME)
    options = ["--data", str(PHOTOS), "--split", "val", "--number", "6", "INPUT.MIN_SIZE_TEST=200"]
    browse_data.main([*options, "--output", str(tmp_path)])
    content = json.loads(ANNOTATIONS.read_text())
    listed = re.findall(r"(\d+)\.jpg: \d+ x \d+, (\d+) object", capsys.readouterr().out)
    assert len(listed) == 6
    for image, count in listed:
        assert int(count) == sum(x["image_id"] == int(image) and not x["iscrowd"] for x in content["annotations"])
    with Image.open(tmp_path / "val_00000.png") as sheet:
        assert sheet.width > 2000  # four columns


def test_attention_and_queries_of_photos(weights, tmp_path, capsys):
    photos = [shutil.copy(path, tmp_path) for path in sorted(IMAGES.iterdir())[:3]]
    output = tmp_path / "out"
    options = ["--model", weights, "--input", *photos, "--confidence-threshold", "0.1"]
    assert demo.main([*options, "--attention", "--output", str(output)]) == 0
    for photo in photos:
        with Image.open(output / f"{Path(photo).stem}_attention.png") as sheet:
            assert min(sheet.size) > 400
    assert explore_queries.main([*options, "--output", str(output / "queries.png")]) == 0
    assert "of 20 queries an image" in capsys.readouterr().out


def test_a_report_of_a_model_that_knows_no_people(tmp_path):
    content = json.loads(ANNOTATIONS.read_text())
    person = next(x["id"] for x in content["categories"] if x["name"] == "person")
    shown = [x for x in content["annotations"] if not x["iscrowd"] and x["category_id"] != person]
    keys = ("image_id", "category_id", "bbox")
    (tmp_path / "inference").mkdir()
    results = [{key: x[key] for key in keys} | {"score": 0.9} for x in shown]
    (tmp_path / "inference" / "coco_instances_results.json").write_text(json.dumps(results))
    report.main([str(tmp_path), "--annotations", str(ANNOTATIONS), "--images", str(IMAGES), "--worst", "2"])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = page[page.index('<section id="classes">') : page.index('<section id="errors">')]
    aps = dict(re.findall(r'<th scope="row" title="([^"]+)">.*?class="bar"[^>]*>(.*?)</td>', rows, re.DOTALL))
    assert aps["person"] == "0.0"
    names = {x["id"]: x["name"] for x in content["categories"]}
    assert {aps[names[x["category_id"]]] for x in shown} == {"100.0"}
    assert "person is weak: AP 0.0 %" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert page.count("data:image/jpeg") == 4
