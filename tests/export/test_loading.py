"""An exported folder in Detectron2's place for a model: what reads it, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor, default_argument_parser
from detectron2.modeling import build_model

import detr
import train_net
from detr.engine.defaults import load_config
from detr.errors import InputError
from detr.export import get_config, load
from tests.conftest import QUICKSTART, make_input


def test_a_moved_folder_is_evaluated_by_train_net(scripted, boxes, shapes_root, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(scripted, moved)
    detections = []
    for config, opts in ((moved / "config.yaml", []), (QUICKSTART, boxes[0])):
        folder = tmp_path / config.parent.name
        args = ["--config-file", str(config), "--eval-only", *opts, "OUTPUT_DIR", str(folder)]
        results = train_net.main(default_argument_parser().parse_args(args))
        assert results.keys() == {"bbox"}
        detections.append(json.loads((folder / "inference" / "coco_instances_results.json").read_text()))
    assert len(detections[0]) == 16 * 20
    for ours, theirs in zip(*detections, strict=True):
        assert ours["category_id"] == theirs["category_id"]
        assert [ours["score"], *ours["bbox"]] == pytest.approx([theirs["score"], *theirs["bbox"]], abs=0.05)


def test_detectron2s_predictor(scripted, boxes):
    cfg = get_cfg()
    detr.add_detr_config(cfg)
    cfg.merge_from_file(str(scripted / "config.yaml"))
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    found = DefaultPredictor(cfg)(image)["instances"]
    expected = DefaultPredictor(load_config(str(QUICKSTART), boxes[0]))(image)["instances"]
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.05)
    assert found.image_size == (90, 140)


def test_a_config_for_cuda_runs_on_the_cpu_where_there_is_no_gpu(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = shutil.copytree(scripted, tmp_path / "from a GPU")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("DEVICE: cpu", "DEVICE: cuda"))
    assert "DEVICE: cuda" in config.read_text()
    predictor = DefaultPredictor(get_config(str(folder)))
    assert len(predictor(np.zeros((96, 128, 3), np.uint8))["instances"]) > 0


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("export.json", lambda text: text[:40], r"export\.json is damaged"),
        ("export.json", lambda text: b"[]", r"export\.json is damaged"),
        ("export.json", lambda text: text.replace(b'"masks"', b'"mask"'), r"export\.json is damaged"),
        ("export.json", lambda text: text.replace(b'"layout": 1', b'"layout": 2'), "has the layout 2, not 1"),
        ("export.json", lambda text: text.replace(b"torchscript", b"caffe"), "the format is caffe"),
        ("export.json", None, r"is no exported model, for it has no export\.json.*was it moved"),
        ("network.pt", lambda graph: graph[:-9], r"has \d+ bytes, not the \d+ that were written"),
        ("network.pt", lambda graph: bytes(len(graph)), r"network\.pt cannot be opened \(.*is it damaged\?"),
        ("network.pt", None, r"lacks network\.pt: copy the whole folder"),
    ],
)
def test_a_damaged_folder_is_reported(scripted, tmp_path, name, change, message):
    path = Path(shutil.copytree(scripted, tmp_path / "copy")) / name
    content = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(content))
    with pytest.raises(InputError, match=message):
        load(str(path.parent))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.WEIGHTS", "model.pth", r"model\.pth, but an exported model has its weights in its graph"),
        ("MODEL.MASK_ON", True, "MODEL.MASK_ON is True, but .* was exported with False"),
        ("MODEL.DETR.NUM_CLASSES", 5, "NUM_CLASSES is 5, but .* was exported with 4"),
        ("MODEL.DETR.PANOPTIC.ENABLED", True, "PANOPTIC.ENABLED is True, which needs masks"),
        ("MODEL.DETR.EXPORTED", "", "MODEL.DETR.EXPORTED '' is no exported model"),
    ],
)
def test_a_config_that_contradicts_the_folder_is_reported(scripted, key, value, message):
    cfg = get_config(str(scripted))
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=message):
        build_model(cfg)


def test_images_alone(scripted):
    """Images of two sizes have the results of batches of one, which they do not have in one batch."""
    model = load(str(scripted), "cpu")
    inputs = [make_input([], [], size, seed) for seed, size in enumerate([(64, 96), (96, 64), (64, 96)])]
    alone = [model([x])[0]["instances"].scores for x in inputs]
    padded = model(inputs)[0]["instances"].scores
    model.images_alone = True
    for output, expected in zip(model(inputs), alone, strict=True):
        torch.testing.assert_close(output["instances"].scores, expected, rtol=0, atol=1e-4)
    assert (padded - alone[0]).abs().max() > 1e-3


def test_training_is_refused(scripted):
    model = load(str(scripted), "cpu")
    with pytest.raises(InputError, match="cannot be trained: call eval"):
        model.train()([make_input([], [])])
    args = default_argument_parser().parse_args(["--config-file", str(scripted / "config.yaml")])
    with pytest.raises(InputError, match="cannot be trained: add --eval-only"):
        train_net.main(args)
