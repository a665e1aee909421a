import pytest
import torch

from detr.checkpoint.formats import coco_rows, is_original_detection, original_to_detectron2
from detr.errors import InputError
from tests.parity.oracle import build_original, original_checkpoint


@pytest.fixture(scope="module")
def original():
    return original_checkpoint(build_original("detr_R_50")[0])["model"]


def test_class_rows_are_the_categories_that_coco_uses():
    """80 ids between 1 and 90, then no-object; 12, 26, 29, 30 ... are COCO's gaps."""
    rows = coco_rows().tolist()
    assert len(rows) == 81
    assert rows == sorted(rows)
    assert rows[:3] == [1, 2, 3]
    assert rows[-2:] == [90, 91]
    assert not {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83} & set(rows)


def test_every_tensor_arrives_once_and_unchanged(original):
    converted = original_to_detectron2(original)
    assert len(converted) == len(original)
    pairs = {
        "backbone.0.body.conv1.weight": "backbone.stem.conv1.weight",
        "backbone.0.body.bn1.running_var": "backbone.stem.conv1.norm.running_var",
        "backbone.0.body.layer1.0.downsample.0.weight": "backbone.res2.0.shortcut.weight",
        "backbone.0.body.layer4.0.downsample.1.bias": "backbone.res5.0.shortcut.norm.bias",
        "backbone.0.body.layer3.5.conv2.weight": "backbone.res4.5.conv2.weight",
        "backbone.0.body.layer3.5.bn3.running_mean": "backbone.res4.5.conv3.norm.running_mean",
        "transformer.decoder.norm.weight": "transformer.decoder.norm.weight",
        "query_embed.weight": "query_embed.weight",
    }
    for old, new in pairs.items():
        assert torch.equal(converted[new], original[old])
    assert torch.equal(converted["class_embed.weight"], original["class_embed.weight"][coco_rows()])


def test_another_number_of_classes_is_kept(original):
    own = original | {"class_embed.weight": torch.randn(8, 256), "class_embed.bias": torch.randn(8)}
    assert torch.equal(original_to_detectron2(own)["class_embed.bias"], own["class_embed.bias"])


@pytest.mark.parametrize("key", ["mask_head.lay1.weight", "backbone.0.body.layer1.0.gn1.weight", "optimizer"])
def test_a_key_without_a_rule_is_named(original, key):
    with pytest.raises(InputError, match=f"1 keys are not .* the first: {key}"):
        original_to_detectron2(original | {key: torch.zeros(1)})


def test_formats_are_told_apart(original):
    assert is_original_detection(original)
    assert not is_original_detection(original_to_detectron2(original))
    assert not is_original_detection({})
