"""The parity harness itself: the oracle loads without traces, and its weights make a test that can fail."""

import copy
import sys
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image

from detr.convert.reference import PACKAGES, load_original
from tests.parity import oracle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["detr_R_50", "detr_R_50_DC5"])
def lively_model(request: pytest.FixtureRequest) -> Any:
    return oracle.lively_original(request.param)[0]


def test_loading_leaves_no_trace() -> None:
    path, version, modules = list(sys.path), torchvision.__version__, _oracle_names()
    load_original.cache_clear()
    oracle.load_oracle.cache_clear()
    oracle.build_original("detr_R_50", enc_layers=1, dec_layers=1)
    assert sys.path == path
    assert torchvision.__version__ == version
    assert _oracle_names() == modules


def _oracle_names() -> dict[str, int]:
    return {n: id(m) for n, m in sys.modules.items() if n.split(".")[0] in PACKAGES}


def test_a_missing_oracle_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "ORACLE_ROOT", oracle.ORACLE_ROOT / "missing")
    with pytest.raises(FileNotFoundError, match=r"run `make test`"):
        oracle.load_oracle.__wrapped__()


def test_building_is_seeded_and_keeps_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, second = (oracle.build_original("detr_R_50", enc_layers=1, dec_layers=1, seed=7)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.class_embed.weight, second.class_embed.weight)


@torch.no_grad()
def test_lively_weights_are_lively(lively_model: Any) -> None:
    images = [oracle.sample_image(224, 288, seed=seed) for seed in (2, 3)]
    first, second = (oracle.run_original(lively_model, [image]) for image in images)
    for outputs in (first, second):
        assert all(outputs[key].isfinite().all() for key in ("pred_logits", "pred_boxes"))
        scores, classes = outputs["pred_logits"][0].softmax(-1).max(-1)
        assert classes.unique().numel() >= 15
        assert scores.min() < 0.3
        assert scores.max() > 0.8
        assert (outputs["pred_boxes"][0].std(dim=0) > 0.05).all()
        assert torch.isin(classes, oracle.coco_kept_rows()).all()
        assert torch.pdist(outputs["pred_logits"][0, :, oracle.coco_kept_rows()]).min() > 1
    # the image counts, not only the queries
    assert (first["pred_boxes"] - second["pred_boxes"]).abs().mean() > 0.02
    assert len(first["aux_outputs"]) == 5


@torch.no_grad()
def test_float32_noise_stays_small(lively_model: Any) -> None:
    """Else the comparison of two correct models fails: sharp attention soon turns chaotic."""
    image = oracle.sample_image(160, 200, seed=4)
    single = oracle.run_original(lively_model, [image])
    double = oracle.run_original(copy.deepcopy(lively_model).double(), [image.double()])
    for key, atol in {"pred_logits": 2e-3, "pred_boxes": 2e-4}.items():
        torch.testing.assert_close(single[key].double(), double[key], rtol=0, atol=atol)


@torch.no_grad()
def test_dropped_rows_do_not_count_in_the_softmax(lively_model: Any) -> None:
    logits = oracle.run_original(lively_model, [oracle.sample_image(200, 260, seed=3)])["pred_logits"]
    rows = oracle.coco_kept_rows()
    torch.testing.assert_close(logits.softmax(-1)[..., rows], logits[..., rows].softmax(-1), rtol=1e-5, atol=0)


@torch.no_grad()
def test_r101_activations_stay_of_order_one() -> None:
    model = oracle.lively_original("detr_R_101", enc_layers=1, dec_layers=1)[0]
    batch = oracle.load_oracle().nested_tensor_from_tensor_list([oracle.sample_image(224, 288, seed=1)])
    features, _ = model.backbone(batch)
    assert 0.3 < features[-1].tensors.std() < 10


@torch.no_grad()
def test_panoptic_variant_has_lively_masks() -> None:
    model = oracle.lively_original("detr_R_50", num_classes=250, masks=True, enc_layers=1, dec_layers=1)[0]
    outputs = oracle.run_original(model, [oracle.sample_image(96, 128, seed=1)])
    assert outputs["pred_logits"].shape[-1] == 251
    assert torch.isin(outputs["pred_logits"].argmax(-1), oracle.panoptic_kept_rows()).all()
    assert 0.2 < (outputs["pred_masks"] > 0).float().mean() < 0.8


@pytest.mark.parametrize(("name", "dilation"), [("detr_R_50", [1, 1, 1]), ("detr_R_50_DC5", [1, 2, 2])])
def test_dilation_of_each_block_of_res5(name: str, dilation: list[int]) -> None:
    model = oracle.build_original(name, enc_layers=1, dec_layers=1)[0]
    assert [block.conv2.dilation[0] for block in model.backbone[0].body.layer4] == dilation


def test_kept_rows_are_in_detectron2s_order() -> None:
    rows = oracle.coco_kept_rows().tolist()
    assert set(range(92)) - set(rows) == {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    assert rows == sorted(rows)
    assert rows[-1] == 91
    panoptic = oracle.panoptic_kept_rows().tolist()
    assert len(panoptic) == 134
    assert panoptic[:81] == [*rows[:80], 92]
    assert panoptic[-2:] == [200, 250]


def test_small_class_heads_keep_every_row() -> None:
    model, criterion, _ = oracle.lively_original("detr_R_50", num_classes=4, enc_layers=1, dec_layers=1, num_queries=10)
    outputs = oracle.run_original(model, [oracle.sample_image(96, 128)])
    targets = oracle.original_targets([[0, 3]], [[[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.1, 0.3]]])
    assert (outputs["pred_logits"] > -50).all()
    assert criterion(outputs, targets)["loss_ce"].isfinite()


def test_test_transform_normalizes_and_truncates_sizes() -> None:
    image = Image.new("RGB", (97, 61), (124, 116, 104))
    tensor = oracle.original_test_transform()(image)
    assert tensor.shape == (3, 800, int(800 * 97 / 61))  # 1272.13; 1333 / 800 is not reached
    assert tensor.abs().max() < 0.02  # the color is ImageNet's mean
