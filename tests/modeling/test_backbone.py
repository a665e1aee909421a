import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList

from detr.errors import InputError
from detr.modeling.backbone import build_detr_backbone, choose_feature, choose_pyramid, padded_sizes, sampled_padding


def resnet50(tiny_config, dilation, **settings):
    return build_detr_backbone(
        tiny_config(
            {
                "MODEL.BACKBONE.NAME": "build_resnet_backbone",
                "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
                "MODEL.RESNETS.RES5_DILATION": dilation,
                "MODEL.RESNETS.OUT_FEATURES": ("res4", "res5"),
                **settings,
            }
        )
    )


def test_dc5_dilates_the_blocks_1_2_2_and_keeps_the_resolution(tiny_config):
    backbone = resnet50(tiny_config, dilation=2)
    assert [block.conv2.dilation for block in backbone.res5] == [(1, 1), (2, 2), (2, 2)]
    assert [block.conv2.padding for block in backbone.res5] == [(1, 1), (2, 2), (2, 2)]
    assert backbone.output_shape()["res5"].stride == 16
    features = backbone(torch.zeros(1, 3, 65, 97))
    assert features["res5"].shape[-2:] == features["res4"].shape[-2:] == (5, 7)


def test_without_dc5_nothing_is_dilated(tiny_config):
    backbone = resnet50(tiny_config, dilation=1)
    assert {block.conv2.dilation for block in backbone.res5} == {(1, 1)}
    assert backbone.output_shape()["res5"].stride == 32


def test_the_feature_is_the_last_or_the_named_one(tiny_config):
    backbone = resnet50(tiny_config, dilation=1)
    assert choose_feature(backbone, "") == "res5"
    assert choose_feature(backbone, "res4") == "res4"
    with pytest.raises(InputError, match=r"IN_FEATURE is 'p5', but the backbone gives res4, res5"):
        choose_feature(backbone, "p5")


@pytest.mark.parametrize("listed", [("res5",), ("stem", "res3", "res5"), ("res2", "res3", "res4", "res5")], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
def test_masks_read_the_stages_below_the_last(tiny_config, dilation, listed):
    """Listed or not; under DC5, res4 has the stride of res5, and with the stem, res2 that of the stem."""
    settings = {"MODEL.MASK_ON": True, "MODEL.RESNETS.OUT_FEATURES": listed}
    backbone = resnet50(tiny_config, dilation, **settings)
    assert choose_feature(backbone, "") == "res5"
    assert choose_pyramid(backbone, "res5") == ("res4", "res3", "res2")


def test_masks_of_a_transformer_on_res4_read_it_again(tiny_config):
    backbone = build_detr_backbone(tiny_config({"MODEL.MASK_ON": True}))  # the small ResNet, which ends there
    assert choose_feature(backbone, "") == "res4"
    assert choose_pyramid(backbone, "res4") == ("res4", "res3", "res2")


def test_missing_strides_for_masks_are_reported(tiny_config):
    backbone = resnet50(tiny_config, dilation=1)
    with pytest.raises(InputError, match=r"stride 16, 8 and 4, but the backbone gives res4 \(16\), res5 \(32\)"):
        choose_pyramid(backbone, "res5")


def test_no_mask_where_no_image_is_padded():
    images = ImageList.from_tensors([torch.zeros(3, 64, 96)] * 2)
    assert padded_sizes(images) is None


def test_padding_by_the_backbone_is_masked_too():
    """One image, padded to a multiple of 32 because a feature pyramid wants that."""
    images = ImageList.from_tensors([torch.zeros(3, 33, 64)], size_divisibility=32)
    assert sampled_padding(padded_sizes(images), (64, 64), (64, 64)).sum() == 31 * 64


def test_padding_is_sampled_as_torch_samples():
    """Its indices round in single precision: sizes where length / samples is no short binary fraction."""
    lengths = [*range(33, 1400, 7), *range(1300, 1334)]
    for length in lengths:
        samples = -(-length // 32)
        ends = [round(i * length / samples) for i in range(samples + 1)]  # every image ends at another sample
        mask = torch.ones(samples + 1, 1, length, 1)
        for column, end in zip(mask[:, 0], ends, strict=True):
            column[:end] = 0
        expected = F.interpolate(mask, size=(samples, 1))[:, 0] > 0  # (samples + 1, samples, 1)
        found = sampled_padding(torch.tensor([[end, 1] for end in ends]), (length, 1), (samples, 1))
        assert torch.equal(found, expected), length
