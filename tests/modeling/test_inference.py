"""A model as people call it: evaluation mode, limits of scores and numbers, keys of other models."""

import re

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model

from tests.conftest import make_input


def test_evaluation_mode_keeps_no_graph(tiny_config):
    model = build_model(tiny_config({"MODEL.MASK_ON": True})).eval()
    instances = model([make_input([], [])])[0]["instances"]
    assert instances.scores.numpy().shape == (20,)
    assert instances.pred_boxes.tensor.numpy().shape == (20, 4)
    assert not instances.pred_masks.requires_grad


def test_gradients_in_evaluation_mode_are_there_for_those_who_ask(tiny_config):
    model = build_model(tiny_config()).eval()
    images = model.preprocess([make_input([], [])])
    model.forward_network(images, return_intermediate=False).logits.sum().backward()
    assert model.class_embed.weight.grad is not None


@pytest.mark.parametrize("masks", [False, True])
def test_scores_and_numbers_of_detections_are_limited(masks, tiny_config):
    x = make_input([], [], seed=3)
    settings = {"MODEL.MASK_ON": masks}
    torch.manual_seed(0)
    model = build_model(tiny_config(settings)).eval()
    torch.nn.init.normal_(model.query_embed.weight, std=2)
    torch.nn.init.normal_(model.class_embed.weight, std=2)
    every = model([x])[0]["instances"]
    threshold = every.scores.sort().values[8].item()

    def limited(**keys):
        other = build_model(tiny_config({**settings, **{key.replace("__", "."): v for key, v in keys.items()}})).eval()
        other.load_state_dict(model.state_dict())
        return other([x])[0]["instances"]

    above = limited(MODEL__DETR__INSTANCE_SCORE_THRESHOLD=threshold)
    assert torch.equal(above.scores, every.scores[every.scores >= threshold])
    best = limited(TEST__DETECTIONS_PER_IMAGE=5)
    kept = every.scores.topk(5).indices.sort().values  # in the order of the queries
    assert torch.equal(best.pred_boxes.tensor, every.pred_boxes.tensor[kept])
    assert best.has("pred_masks") == masks
    assert len(limited(TEST__DETECTIONS_PER_IMAGE=-1)) == len(every)  # as in Detectron2


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_HEADS.NUM_CLASSES", 3, r"MODEL\.ROI_HEADS\.NUM_CLASSES \(set MODEL\.DETR\.NUM_CLASSES instead\)"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.5, r"set MODEL\.DETR\.INSTANCE_SCORE_THRESHOLD instead"),
        ("TEST.AUG.ENABLED", True, r"TEST\.AUG\.ENABLED"),
        ("MODEL.RPN.NMS_THRESH", 0.5, r"MODEL\.RPN\.NMS_THRESH"),
    ],
)
def test_a_key_that_detr_does_not_read_is_warned_of(key, value, message, tiny_config, caplog):
    build_model(tiny_config())
    assert "does not read" not in caplog.text
    build_model(tiny_config({key: value}))
    assert len([record for record in caplog.records if "does not read" in record.message]) == 1
    assert re.search(message, caplog.text)


def test_default_predictor_loads_and_predicts(run_config, tmp_path):
    cfg = run_config()
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "weights.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    found = DefaultPredictor(cfg)(np.zeros((100, 120, 3), dtype=np.uint8))["instances"]
    assert found.image_size == (100, 120)
