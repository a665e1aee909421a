import pytest
import torch
from detectron2.structures import ImageList

from detr.errors import InputError
from detr.modeling.backbone import build_detr_backbone, choose_feature, padding_mask


def resnet50(tiny_config, dilation):
    return build_detr_backbone(
        tiny_config(
            {
                "MODEL.BACKBONE.NAME": "build_resnet_backbone",
                "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
                "MODEL.RESNETS.RES5_DILATION": dilation,
                "MODEL.RESNETS.OUT_FEATURES": ("res4", "res5"),
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


def test_no_mask_where_no_image_is_padded():
    images = ImageList.from_tensors([torch.zeros(3, 64, 96)] * 2)
    assert padding_mask(images, (2, 3)) is None


def test_padding_by_the_backbone_is_masked_too():
    """One image, padded to a multiple of 32 because a feature pyramid wants that."""
    images = ImageList.from_tensors([torch.zeros(3, 33, 64)], size_divisibility=32)
    assert padding_mask(images, (64, 64)).sum() == 31 * 64
