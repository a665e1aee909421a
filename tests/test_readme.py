"""What the README tells to type, where nothing else runs it."""

import json
import os
import textwrap

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine.defaults import load_config
from detr.engine.evaluation import build_evaluator
from tests.conftest import ROOT
from tools import analyze_model

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 2, "name": "dog", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Two images of 64 x 48: a cat on the left, a dog on the right, sky above; the files that the README names."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("images")
    os.mkdir("pngs")
    images, panoptic, instances = [], [], []
    for i in (1, 2):
        ids = np.full((48, 64), 300)
        ids[10:40, 5:25], ids[20:44, 40:60] = 100, 200
        rgb = np.stack([ids % 256, ids // 256, ids * 0], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(f"images/{i}.jpg")
        Image.fromarray(rgb).save(f"pngs/{i}.png")
        images.append({"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64})
        segments = []
        for j, (segment, category) in enumerate(((100, 1), (200, 2), (300, 7))):
            rows, columns = np.nonzero(ids == segment)
            left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            box = [int(x) for x in (left, top, right - left, bottom - top)]
            common = {"category_id": category, "bbox": box, "area": len(rows), "iscrowd": 0}
            segments.append({"id": segment, **common})
            if category < 7:
                outline = [int(x) for x in (left, top, right, top, right, bottom, left, bottom)]
                instances.append({"id": 10 * i + j, "image_id": i, **common, "segmentation": [outline]})
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    for name, annotations in (("mine.json", panoptic), ("mine_instances.json", instances)):
        (tmp_path / name).write_text(
            json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": CATEGORIES})
        )
    yield
    DatasetCatalog.remove("mine_panoptic")
    MetadataCatalog.remove("mine_panoptic")


def test_a_panoptic_set_registered_as_the_readme_says(mine):
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("    from detectron2.data import MetadataCatalog, DatasetCatalog")
    end = next(i for i in range(start, len(lines)) if lines[i].endswith("**meta)"))
    exec("\n".join(line[4:] for line in lines[start : end + 1]), {})

    config = str(ROOT / "configs" / "COCO-PanopticSegmentation" / "detr_R_50.yaml")
    cfg = load_config(config, ["MODEL.DETR.NUM_CLASSES", "3", "INPUT.CROP.ENABLED", "False"])
    mapper = DetrPanopticMapper(cfg, is_train=True)
    dicts = DatasetCatalog.get("mine_panoptic")
    assert [mapper(x)["instances"].gt_classes.tolist() for x in dicts] == [[0, 1, 2], [0, 1, 2]]
    assert len(build_evaluator(cfg, "mine_panoptic")._evaluators) == 2  # AP and PQ


def test_the_table_of_a_models_size_is_what_the_tool_prints(capsys):
    analyze_model.main(["--config-file", str(ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml")])
    assert textwrap.indent(capsys.readouterr().out, "    ") in (ROOT / "README.md").read_text()
