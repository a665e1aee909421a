"""The whole commands run, and their results are compared: boxes and maps in batches with those of single images."""

import json

import pytest

from benchmarks.timing import Disagreement, Settings
from benchmarks.whole_evaluation import _compare, measure
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_panoptic_row_runs():
    result = measure(Settings(repeats=1, threads=1, smoke=True), earlier=ROOT, panoptic=True)
    assert list(result.samples) == ["ours", "before"]
    assert result.unit == "images/s"
    assert "maps with other segments" in result.agreement
    assert int(result.agreement.rpartition("; ")[2].split()[0]) > 10  # detections


@pytest.mark.parametrize(
    ("key", "value"), [("score", 0.6), ("bbox", [1, 2, 3, 9]), ("category_id", 4), ("image_id", 8)], ids=str
)
def test_another_detection_is_noticed(tmp_path, key, value):
    detection = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}
    detections = {"ours": [detection, {**detection, key: value}], "before": [detection, dict(detection)]}
    for name, content in detections.items():
        (tmp_path / name / "inference").mkdir(parents=True)
        (tmp_path / name / "inference" / "coco_instances_results.json").write_text(json.dumps(content))
    assert "2 detections" in _compare(tmp_path / "before", tmp_path / "before")
    with pytest.raises(Disagreement):
        _compare(tmp_path / "ours", tmp_path / "before")
