"""docs/predict.md: what it has a reader run, on a made video and with a model that needs no training."""

import itertools
import re

import cv2
import numpy as np
import pytest

from detr.inference.video import VideoWriter
from tests.conftest import ROOT
from tests.finder import save_finder

PAGE = (ROOT / "docs" / "predict.md").read_text()
PYTHON, TILES, TRACKING = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FRAMES = 40


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the page names. In the video, two red squares cross at different heights, and a blue one stays."""
    monkeypatch.chdir(tmp_path)
    save_finder(tmp_path / "output" / "mine")
    with VideoWriter("clip.mp4") as writer:
        for i in range(FRAMES):
            image = np.zeros((256, 256, 3), dtype=np.uint8)
            for x, y, channel in ((4 + 5 * i, 10, 0), (200 - 5 * i, 90, 0), (100, 180, 2)):
                image[y : y + 40, x : x + 40, channel] = 255
            writer.write(image)
            last = image
    cv2.imwrite("photo.jpg", last[..., ::-1])
    cv2.imwrite("aerial.jpg", np.pad(last[..., ::-1], ((0, 900), (0, 900), (0, 0))))


def test_an_objects_id_stays_the_same_through_a_video(files):
    names = {}
    exec(TRACKING, names)
    assert len(names["tracks"]) == FRAMES
    paths = {}
    for i, detections in enumerate(names["tracks"]):
        for box, number in zip(detections.xyxy, detections.tracker_id, strict=True):
            if number != -1:
                paths.setdefault(int(number), []).append((i, box))
    assert len(paths) == 3
    for path in paths.values():
        assert len(path) >= FRAMES - 3  # an object has no number before it was seen again
        tops = {round(float(box[1]) / 10) for _, box in path}
        assert len(tops) == 1  # it is one square all along
        lefts = [float(box[0]) for _, box in path]
        steps = [b - a for a, b in itertools.pairwise(lefts)]
        assert max(steps) - min(steps) < 4


def test_ten_lines_are_enough_for_tracking():
    assert len([line for line in TRACKING.splitlines() if line and "import" not in line]) <= 10


def test_the_three_lines_from_weights_to_objects(files):
    names = {}
    exec(PYTHON, names)
    assert sorted(names["names"]) == ["disc", "disc", "square"]


def test_the_lines_for_tiles(files):
    names = {}
    exec(TILES, names)
    assert {x.category.name for x in names["result"].object_prediction_list} == {"disc", "square"}
