"""Which score an object needs: the argument's, else the one saved with the weights, else a half."""

import shutil

import numpy as np
import pytest
import torch

from detr.checkpoint import DetrCheckpointer, set_score_threshold
from detr.errors import InputError
from detr.inference.predictor import Predictor
from tests.conftest import QUICKSTART, ROOT, TINY
from tests.finder import save_finder
from tests.lively import build_lively

PANOPTIC = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"


def test_the_threshold_is_the_arguments_else_the_saved_one_else_a_half(weights, tmp_path):
    assert Predictor(weights).threshold == 0.5
    settings = {**TINY, "MODEL.DETR.INSTANCE_SCORE_THRESHOLD": 0.3}
    DetrCheckpointer(build_lively(QUICKSTART, settings), str(tmp_path)).save("model")
    saved = Predictor(tmp_path / "model.pth")
    assert saved.threshold == 0.3
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    scores = Predictor(weights, threshold=0)(image, color="RGB").scores
    assert len(scores) == 20
    for predictor in (saved, Predictor(tmp_path / "model.pth", threshold=0.7)):
        found = predictor(image, color="RGB").scores
        assert torch.equal(found, scores[scores >= predictor.threshold])
        assert 0 < len(found) < 20
    with pytest.raises(InputError, match=r"threshold is 1\.5"):
        Predictor(weights, threshold=1.5)


def test_the_threshold_of_a_fine_tuning_counts_unless_another_is_named(weights, tmp_path):
    path = shutil.copy(weights, tmp_path / "fine_tuned.pth")
    set_score_threshold(str(path), 0.35)
    assert Predictor(path).threshold == 0.35
    assert Predictor(path, opts=["MODEL.DETR.INSTANCE_SCORE_THRESHOLD", "0.6"]).threshold == 0.6
    assert Predictor(path, threshold=0.2).threshold == 0.2


def test_the_threshold_counts_for_models_with_an_inference_of_their_own(tmp_path):
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[20:40, 20:40] = 255
    weights = save_finder(tmp_path)
    assert [len(Predictor(weights, threshold=x)(image, color="RGB")) for x in (0.9, 0.91)] == [1, 0]


def test_a_threshold_that_is_given_counts_for_panoptic_maps(tmp_path):
    DetrCheckpointer(build_lively(PANOPTIC, TINY), str(tmp_path)).save("model")
    chosen = [Predictor(tmp_path / "model.pth", threshold=x).model.postprocessor.panoptic for x in (None, 0.6)]
    assert [x.score_threshold for x in chosen] == [0.85, 0.6]


def test_masks_below_the_threshold_are_not_computed(tmp_path):
    DetrCheckpointer(build_lively(PANOPTIC, TINY), str(tmp_path)).save("model")
    predictor = Predictor(tmp_path / "model.pth", threshold=0.9)
    rows = []
    predictor.model.mask_head.register_forward_pre_hook(lambda _, args: rows.append(len(args[-1])))
    image = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    predictor(image, color="RGB")
    assert 0 < sum(rows) < 20
