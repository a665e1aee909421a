"""tools/browse_data.py: what it lists and draws."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from detr.data.images import read_image
from detr.errors import InputError
from detr.pictures.browsing import view_annotations
from tests.conftest import QUICKSTART, ROOT
from tools import browse_data

PANOPTIC = str(ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml")
LINE = re.compile(r" +(\d+)  (.+): (\d+) x (\d+), (\d+) objects?(?:: (.+))?")


def browse(capsys, folder, *options):
    """The lines of the images, and the sheets."""
    browse_data.main([*options, "--output", str(folder)])
    lines = [match.groups() for match in map(LINE.fullmatch, capsys.readouterr().out.splitlines()) if match]
    return lines, {path.name: read_image(str(path), "RGB") for path in sorted(folder.iterdir())}


def annotated(root, split):
    """The number of objects of each image."""
    content = json.loads((root / "shapes" / "annotations" / f"instances_{split}.json").read_text())
    return [sum(x["image_id"] == image["id"] for x in content["annotations"]) for image in content["images"]]


def test_pages_of_a_training_set_are_the_same_every_time(shapes_root, tmp_path, capsys):
    config = ["--config-file", str(QUICKSTART)]
    lines, sheets = browse(capsys, tmp_path / "a", *config, "--number", "10", "INPUT.MIN_SIZE_TRAIN=(64,)")
    assert [int(x[0]) for x in lines] == list(range(10))
    assert {x[2:4] for x in lines} == {("64", "64")}  # as the network is shown them
    assert [int(x[4]) for x in lines] == annotated(shapes_root, "train")[:10]
    assert list(sheets) == ["train_00000.png", "train_00008.png"]
    more = [*config, "--start", "8", "--number", "2"]
    _, later = browse(capsys, tmp_path / "b", *more, "INPUT.MIN_SIZE_TRAIN=(64,)")
    assert np.array_equal(later["train_00008.png"], sheets["train_00008.png"])
    drawn = [browse(capsys, tmp_path / name, *more, "--seed", name)[1]["train_00008.png"] for name in "1234"]
    assert any(x.shape != drawn[0].shape or (x != drawn[0]).any() for x in drawn[1:])  # some are flipped


@pytest.mark.parametrize("source", ["mapper", "annotations"])
def test_a_panoptic_set_has_its_stuff(source, shapes_root, tmp_path, capsys):
    options = ["--config-file", PANOPTIC, "--split", "val", "--number", "3", "--source", source]
    lines, sheets = browse(capsys, tmp_path / "out", *options)
    assert [int(x[4]) > things for x, things in zip(lines, annotated(shapes_root, "val"), strict=False)] == [True] * 3
    assert all("grass" in x[5] or "water" in x[5] or "sky" in x[5] for x in lines)
    assert list(sheets) == ["val_00000.png"]


def test_a_folder_with_a_broken_image(shapes_root, tmp_path, capsys, registered):
    registered.append(browse_data.NAME)
    folder = tmp_path / "photos"
    shutil.copytree(shapes_root / "shapes" / "val", folder / "val")
    (folder / "annotations").mkdir()
    shutil.copy(shapes_root / "shapes" / "annotations" / "instances_val.json", folder / "annotations")
    names = sorted(path.name for path in (folder / "val").iterdir())
    (folder / "val" / names[1]).write_bytes(b"no image")
    browse_data.main(["--data", str(folder), "--number", "3", "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert re.search(rf"^ +1  error: cannot read the image .*{names[1]}", printed, re.MULTILINE)
    assert f"3 of the 16 images of {folder}" in printed
    assert read_image(str(tmp_path / "out" / "train_00000.png"), "RGB").shape[0] > 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name a data set with --data FOLDER"),
        (["--data", "/nowhere"], "/nowhere does not exist"),
        (["--config-file", str(QUICKSTART), "--start", "48"], "--start 48, but shapes_train has 48 images"),
        (["--config-file", str(QUICKSTART), "--number", "0"], "--number is 0: it must be at least 1"),
        (["--config-file", str(QUICKSTART), "DATASETS.TRAIN=()"], "no data set for --split train"),
        (["--config-file", str(QUICKSTART), "MODEL.META_ARCHITECTURE=GeneralizedRCNN"], "visualize_data.py"),
    ],
)
def test_what_cannot_be_browsed(options, message, shapes_root, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        browse_data.main([*options, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_all_that_is_annotated_is_drawn(tmp_path):
    path = tmp_path / "gray.png"
    Image.fromarray(np.full((400, 600, 3), 128, dtype=np.uint8)).save(path)  # which is drawn as large as it is
    mask = np.zeros((400, 600), dtype=bool)
    mask[100:200, 100:300] = True
    whole = {"bbox_mode": 0, "category_id": 0}
    objects = [{**whole, "bbox": [100, 100, 300, 200], "segmentation": mask}, {**whole, "bbox": [400, 300, 500, 380]}]
    crowd = {**whole, "bbox": [10, 300, 90, 390], "iscrowd": 1}
    x = {"file_name": str(path), "annotations": [*objects, crowd]}
    view = view_annotations(x, ["cat"])
    assert view.line() == "600 x 400, 3 objects: 2 cat, 1 cat (crowd)"
    assert view.picture.shape == (400, 600, 3)
    assert (view.picture[150, 200] != 128).any()  # inside of the mask
    assert (view.picture[340, 450] == 128).all()  # inside of a box without one
    assert (view.picture[340, 8:13] != 128).any()  # the edge of the crowd's box
    empty = view_annotations({"file_name": str(path)}, None)
    assert empty.line() == "600 x 400, 0 objects"
    assert torch.equal(torch.from_numpy(empty.picture), torch.full((400, 600, 3), 128, dtype=torch.uint8))
