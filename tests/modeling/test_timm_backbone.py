"""timm's models as backbones: features, padding, freezing, weights and what cannot be built. Nothing is downloaded."""

import logging
import sys

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from detr.checkpoint import DetrCheckpointer
from detr.errors import InputError
from detr.modeling.timm_backbone import TimmBackbone, build_timm_backbone

CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
SWIN = {"embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}


def convnext(**options):
    return TimmBackbone("convnext_atto", **{"arguments": CONVNEXT, **options})


@pytest.fixture
def timm_config(tiny_config):
    """timm_config({"KEY": value, ...}): the quickstart config on a tiny ConvNeXt."""

    def make(settings=None):
        return tiny_config(
            {
                "MODEL.BACKBONE.NAME": "build_timm_backbone",
                "MODEL.TIMM.NAME": "convnext_atto",
                "MODEL.TIMM.PRETRAINED": False,
                "MODEL.BACKBONE.ARGUMENTS": tuple(CONVNEXT.items()),
                **(settings or {}),
            }
        )

    return make


@pytest.mark.parametrize(
    ("name", "arguments", "indices", "shapes"),
    [
        ("convnext_atto", CONVNEXT, (-1,), {"feature3": (32, 32)}),
        ("convnext_atto", CONVNEXT, (-1, 0, 3, 1), {"feature0": (8, 4), "feature1": (16, 8), "feature3": (32, 32)}),
        ("swin_tiny_patch4_window7_224", SWIN, (1, 3), {"feature1": (16, 8), "feature3": (64, 32)}),
        ("vit_tiny_patch16_224", VIT, (-2, -1), {"feature1": (32, 16), "feature2": (32, 16)}),
        ("resnet10t", {}, (2, 4), {"feature2": (128, 8), "feature4": (512, 32)}),
    ],
)
def test_features_have_the_shapes_that_are_announced(name, arguments, indices, shapes):
    """Of an image whose sides are other multiples of the divisibility than the model's own size."""
    backbone = TimmBackbone(name, out_indices=indices, arguments=arguments).eval()
    assert backbone.output_shape() == {key: ShapeSpec(channels=c, stride=s) for key, (c, s) in shapes.items()}
    height, width = 3 * backbone.size_divisibility, 5 * backbone.size_divisibility
    features = backbone(torch.randn(2, 3, height, width))
    found = {key: tuple(x.shape) for key, x in features.items()}
    assert found == {key: (2, c, height // s, width // s) for key, (c, s) in shapes.items()}


def test_channels_of_a_model_that_has_them_last_are_moved():
    """Against timm's own output."""
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", arguments=SWIN).eval()
    image = torch.randn(1, 3, 64, 96)
    expected = backbone.body(image)[0]  # (N, H, W, C)
    assert torch.equal(backbone(image)["feature3"][0, :, 1, 2], expected[0, 1, 2])


def test_windows_of_a_fixed_grid_make_the_divisibility_larger():
    backbone = TimmBackbone("maxvit_pico_rw_256", arguments={"depths": (1, 1, 1, 1), "embed_dim": (32, 32, 32, 32)})
    assert backbone.size_divisibility == 8 * 32
    assert backbone.eval()(torch.zeros(1, 3, 256, 512))["feature4"].shape[-2:] == (8, 16)


def test_images_are_padded_to_whole_patches(timm_config):
    vit = {"MODEL.TIMM.NAME": "vit_tiny_patch16_224", "MODEL.BACKBONE.ARGUMENTS": tuple(VIT.items())}
    model = build_model(timm_config(vit)).eval()
    images = model.preprocess([{"image": torch.zeros(3, 50, 70, dtype=torch.uint8)}])
    assert images.tensor.shape[-2:] == (64, 80)
    assert model.forward_network(images, return_intermediate=False).boxes.isfinite().all()


@pytest.mark.parametrize(
    ("name", "arguments", "freeze_at", "frozen"),
    [
        ("convnext_atto", CONVNEXT, 0, set()),
        ("convnext_atto", CONVNEXT, 2, {"stem_0", "stem_1", "stages_0"}),
        ("convnext_atto", CONVNEXT, 3, {"stem_0", "stem_1", "stages_0", "stages_1"}),
        ("resnet10t", {}, 1, {"conv1"}),  # whose norm is frozen, and has no parameters any more
        ("resnet10t", {}, 2, {"conv1", "layer1"}),
        ("vit_tiny_patch16_224", VIT, 3, set()),
    ],
)
def test_frozen_stages(name, arguments, freeze_at, frozen):
    backbone = TimmBackbone(name, freeze_at=freeze_at, norm="BN", arguments=arguments)
    by_part = {}
    for key, parameter in backbone.body.named_parameters():
        by_part.setdefault(key.split(".")[0], set()).add(parameter.requires_grad)
    assert {part for part, values in by_part.items() if values == {False}} == frozen
    assert all(len(values) == 1 for values in by_part.values())


def test_a_vit_is_frozen_as_a_whole():
    backbone = TimmBackbone("vit_tiny_patch16_224", freeze_at=4, arguments=VIT)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_unknown_ends_of_stages_are_reported():
    with pytest.raises(InputError, match=r"FREEZE_AT is 2, but where the stages of hrnet_w18_small end is not known"):
        TimmBackbone("hrnet_w18_small", freeze_at=2)


def test_frozen_norms_give_the_output_of_the_norms_in_evaluation():
    """Those of EfficientNet hold its activation; statistics are away from 0 and 1."""
    torch.manual_seed(0)
    trained = TimmBackbone("efficientnet_lite0", norm="BN", out_indices=(2,)).eval()
    norms = [module for module in trained.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.uniform_(0.5, 2)
    frozen = TimmBackbone("efficientnet_lite0", norm="FrozenBN", out_indices=(2,))
    frozen.load_state_dict(trained.state_dict())
    assert norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(frozen.train()(image)["feature2"], trained(image)["feature2"], rtol=1e-4, atol=1e-4)


def test_trained_norms_are_frozen_in_frozen_stages_alone():
    backbone = TimmBackbone("resnet10t", norm="BN", freeze_at=2).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items() if "running_mean" in key}
    backbone(torch.randn(2, 3, 64, 64))
    moved = {key.split(".")[1] for key, value in before.items() if not torch.equal(value, backbone.state_dict()[key])}
    assert moved == {"layer2", "layer3", "layer4"}


def test_blocks_that_are_computed_again_have_the_same_gradient(timm_config):
    image, gradients = torch.randn(1, 3, 64, 64), []
    for parts in ((), ("backbone",)):
        torch.manual_seed(0)
        model = build_model(timm_config({"MODEL.DETR.ACTIVATION_CHECKPOINT": parts})).train()
        assert model.backbone.body.grad_checkpointing == bool(parts)
        model.backbone(image)["feature3"].square().sum().backward()
        gradients.append([parameter.grad for parameter in model.backbone.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_trained_batch_norms_are_not_computed_again(timm_config):
    settings = {"MODEL.TIMM.NAME": "resnet10t", "MODEL.BACKBONE.ARGUMENTS": (), "MODEL.TIMM.NORM": "BN"}
    with pytest.raises(InputError, match="without trained batch norms"):
        build_model(timm_config({**settings, "MODEL.DETR.ACTIVATION_CHECKPOINT": ("backbone",)}))


@pytest.mark.parametrize(
    ("settings", "warns"), [({}, True), ({"MODEL.TIMM.NORM": "BN"}, False), ({"MODEL.WEIGHTS": "mine.pth"}, False)]
)
def test_norms_that_are_frozen_before_they_learned_are_warned_of(timm_config, caplog, settings, warns):
    settings = {"MODEL.TIMM.NAME": "test_byobnet", "MODEL.BACKBONE.ARGUMENTS": (), **settings}
    with caplog.at_level(logging.WARNING, "detr.modeling"):
        build_timm_backbone(timm_config(settings), ShapeSpec(channels=3))
    assert ("the batch norms of test_byobnet are frozen as they are initialized" in caplog.text) == warns


def test_masks_get_the_features_that_they_need_whether_listed_or_not(timm_config):
    cfg = timm_config({"MODEL.MASK_ON": True, "MODEL.TIMM.OUT_INDICES": (3,)})
    assert list(build_model(cfg).backbone.output_shape()) == ["feature0", "feature1", "feature2", "feature3"]


def test_channels_follow_the_pixel_mean(timm_config):
    cfg = timm_config({"MODEL.PIXEL_MEAN": (0.0,) * 5, "MODEL.PIXEL_STD": (1.0,) * 5})
    assert build_model(cfg).backbone.body.stem_0.in_channels == 5


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"MODEL.TIMM.NAME": ""}, r"MODEL.TIMM.NAME is empty"),
        (
            {"MODEL.TIMM.NAME": "convnextt_atto"},
            r"'convnextt_atto', which timm \S+ does not have: did you mean convnext",
        ),
        ({"MODEL.TIMM.NAME": "convnext_atto.no_such_tag"}, r"cannot be built as a backbone: .*no_such_tag"),
        (
            {"MODEL.TIMM.OUT_INDICES": (4,)},
            r"OUT_INDICES is \(4,\), but convnext_atto has these features: 0 \(stride 4\)",
        ),
        ({"MODEL.TIMM.OUT_INDICES": (1.5,)}, r"OUT_INDICES is \(1.5,\): it must be whole numbers"),
        ({"MODEL.TIMM.NORM": "GN"}, r"NORM is 'GN': it must be one of FrozenBN, BN"),
        ({"MODEL.BACKBONE.ARGUMENTS": ("depths", 3)}, r"ARGUMENTS is .*: it must be \(name, value\) pairs"),
        ({"MODEL.BACKBONE.ARGUMENTS": (("widths", 3),)}, r"cannot be built as a backbone: TypeError: .*widths"),
        (
            {"MODEL.TIMM.NAME": "visformer_tiny", "MODEL.BACKBONE.ARGUMENTS": ()},
            r"does not take images of any size: 160 x 224 pixels raise AssertionError",
        ),
    ],
)
def test_what_cannot_be_built_is_one_line(timm_config, settings, text):
    with pytest.raises(InputError, match=text) as error:
        build_timm_backbone(timm_config(settings), ShapeSpec(channels=3))
    assert "\n" not in str(error.value)


def test_a_missing_timm_is_one_line_that_names_the_extra(timm_config, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm, which is not installed: pip install 'detectron2-detr\[timm\]'"):
        build_model(timm_config())


@pytest.fixture
def pretrained(timm_config, tmp_path):
    """A config whose weights of timm are a file, and these weights."""
    torch.manual_seed(1)
    weights = timm.create_model("convnext_atto", **CONVNEXT).state_dict()
    path = tmp_path / "weights.pth"
    torch.save(weights, path)
    arguments = (*CONVNEXT.items(), ("pretrained_cfg_overlay", {"file": str(path)}))
    return timm_config({"MODEL.TIMM.PRETRAINED": True, "MODEL.BACKBONE.ARGUMENTS": arguments}), weights, path


def test_a_training_starts_from_timms_weights_and_resumes_without_them(pretrained, tmp_path):
    cfg, weights, path = pretrained
    model = build_model(cfg)
    stem = model.backbone.body.stem_0.weight
    assert not torch.equal(stem, weights["stem.0.weight"])  # building fetches nothing
    checkpointer = DetrCheckpointer(model, str(tmp_path))
    checkpointer.resume_or_load("", resume=True)
    assert torch.equal(stem, weights["stem.0.weight"])
    assert torch.equal(
        model.backbone.body.stages_3.blocks[0].mlp.fc1.weight, weights["stages.3.blocks.0.mlp.fc1.weight"]
    )
    assert checkpointer.pretrained == ["convnext_atto"]
    with torch.no_grad():
        stem.zero_()
    checkpointer.save("model_0000001")
    path.unlink()
    for resume, source in ((True, ""), (False, str(tmp_path / "model_0000001.pth"))):
        again = build_model(cfg)
        DetrCheckpointer(again, str(tmp_path)).resume_or_load(source, resume=resume)
        assert not again.backbone.body.stem_0.weight.any()


def test_weights_that_cannot_be_had_are_one_line(pretrained):
    cfg, _, path = pretrained
    path.unlink()
    with pytest.raises(InputError, match=r"timm's weights of convnext_atto cannot be had: .*PRETRAINED False"):
        DetrCheckpointer(build_model(cfg)).load("")


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({}, False),
        ({"MODEL.PIXEL_MEAN": (127.5, 127.5, 127.5)}, True),
        ({"INPUT.FORMAT": "BGR"}, True),
        ({"MODEL.PIXEL_MEAN": (127.5, 127.5, 127.5), "MODEL.WEIGHTS": "mine.pth"}, False),
        ({"MODEL.PIXEL_MEAN": (127.5, 127.5, 127.5), "MODEL.TIMM.PRETRAINED": False}, False),
    ],
)
def test_other_inputs_than_those_of_timms_weights_are_warned_of(timm_config, caplog, settings, warns):
    with caplog.at_level(logging.WARNING, "detr.modeling"):
        build_timm_backbone(timm_config({"MODEL.TIMM.PRETRAINED": True, **settings}), ShapeSpec(channels=3))
    expected = (
        "set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] and MODEL.PIXEL_STD [58.395, 57.12, 57.375]"
    )
    assert (expected in caplog.text) == warns
