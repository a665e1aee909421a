import re

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from detr.errors import InputError
from tests.conftest import make_input

BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0]]

RESNET18 = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": ("res2", "res3", "res4", "res5"),
}
BACKBONES = {
    "small ResNet": {},
    "ResNet-18": {**RESNET18, "MODEL.DETR.IN_FEATURE": "res5"},
    "ResNet-18 with FPN": {
        **RESNET18,
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.FPN.IN_FEATURES": ("res2", "res3", "res4", "res5"),
        "MODEL.DETR.IN_FEATURE": "p4",
    },
}


def build(tiny_config, settings=None):
    torch.manual_seed(0)
    return build_model(tiny_config(settings))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("objects", [[2, 1], [0, 2], [0, 0]], ids=str)
def test_trains_with_any_backbone_and_with_empty_images(tiny_config, backbone, objects):
    model = build(tiny_config, BACKBONES[backbone]).train()
    batch = [make_input(BOXES[:n], [1, 3][:n], size) for n, size in zip(objects, [(96, 128), (90, 101)], strict=True)]
    losses = model(batch)
    assert len(losses) == 6  # three losses, two decoder layers
    sum(losses.values()).backward()
    # Distributed training hangs on a trainable parameter without a gradient: a pyramid's other levels are frozen.
    trainable = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, gradient in trainable.items() if gradient is None]
    assert all(torch.isfinite(gradient).all() for gradient in trainable.values())
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == ({"fpn_output2", "fpn_lateral2", "fpn_output3", "fpn_lateral3", "fpn_output5"}
                      if "FPN" in backbone else set())  # fmt: skip


@pytest.mark.parametrize("backbone", BACKBONES)
def test_detects_at_output_size(tiny_config, backbone):
    model = build(tiny_config, BACKBONES[backbone]).eval()
    inputs = [make_input([], [], (96, 128)), make_input([], [], (90, 101))]
    inputs[1].update(height=180, width=303)
    with torch.no_grad():
        first, second = (x["instances"] for x in model(inputs))
        alone = model([inputs[1]])[0]["instances"]
        model_size = model([{"image": inputs[1]["image"]}])[0]["instances"]
    assert (first.image_size, second.image_size) == ((96, 128), (180, 303))
    assert len(first) == len(second) == 20
    assert second.pred_classes.max() < 4
    assert model_size.image_size == (90, 101)
    scale = torch.tensor([3.0, 2.0, 3.0, 2.0])  # 303 / 101 and 180 / 90
    torch.testing.assert_close(alone.pred_boxes.tensor, model_size.pred_boxes.tensor * scale)


def test_the_padding_mask_reaches_the_attention(tiny_config, monkeypatch):
    """Padding of a size that the backbone's borders hardly notice must hardly change the boxes, and without the
    mask it does."""
    model = build(tiny_config, {"MODEL.RESNETS.NORM": "FrozenBN"}).eval()
    with torch.no_grad():
        model.query_embed.weight.mul_(5)
        small, large = make_input([], [], (64, 64)), make_input([], [], (128, 160), seed=1)

        def boxes(*inputs):
            return model(list(inputs))[0]["instances"].pred_boxes.tensor

        alone, together = boxes(small), boxes(small, large)
        monkeypatch.setattr("detr.modeling.meta_arch.padded_sizes", lambda *_: None)
        unmasked = boxes(small, large)
    assert (together - alone).abs().max() < 0.5 * (unmasked - alone).abs().max()


def test_metrics_go_to_the_event_storage_and_never_to_the_loss(tiny_config):
    model = build(tiny_config).train()
    batch = [make_input(BOXES, [0, 1])]
    with EventStorage() as storage:
        losses = model(batch)
        assert storage.latest().keys() == {"class_error", "cardinality_error"}
    assert all(key.startswith("loss_") for key in losses)


def test_without_deep_supervision_the_last_layer_alone_is_penalized(tiny_config):
    model = build(tiny_config, {"MODEL.DETR.DEEP_SUPERVISION": False}).train()
    assert model([make_input(BOXES, [0, 1])]).keys() == {"loss_ce", "loss_bbox", "loss_giou"}


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_outside_the_classes_names_the_image(tiny_config, label):
    model = build(tiny_config).train()
    bad = {**make_input(BOXES, [0, label]), "file_name": "a/b.jpg"}
    with pytest.raises(InputError, match=r"a/b\.jpg has the labels .* outside \[0, 4\)"):
        model([bad])


MASKS = {"MODEL.MASK_ON": True}
FROZEN = {"MODEL.DETR.FREEZE_DETR": True}
ODD_WIDTH = {"MODEL.DETR.HIDDEN_DIM": 34, "MODEL.DETR.NHEADS": 2, "MODEL.DETR.POSITION_EMBEDDING": "learned"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MODEL.DETR.HIDDEN_DIM": 30}, "HIDDEN_DIM 30 is not divisible by MODEL.DETR.NHEADS 4"),
        ({"MODEL.DETR.HIDDEN_DIM": 33, "MODEL.DETR.NHEADS": 3}, "HIDDEN_DIM 33 is not divisible by 4"),
        (
            {"MODEL.DETR.HIDDEN_DIM": 33, "MODEL.DETR.NHEADS": 3, "MODEL.DETR.POSITION_EMBEDDING": "learned"},
            "HIDDEN_DIM 33 is not divisible by 2",
        ),
        ({"MODEL.DETR.POSITION_EMBEDDING": "rotary"}, "'rotary': it must be one of sine, learned"),
        ({"MODEL.DETR.NUM_OBJECT_QUERIES": 0}, "NUM_OBJECT_QUERIES is 0: it must be at least 1"),
        ({**MASKS, "MODEL.DETR.HIDDEN_DIM": 36}, "36 is not divisible by 16: the mask head"),
        (
            {
                **RESNET18,
                **MASKS,
                "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
                "MODEL.FPN.IN_FEATURES": ("res3", "res4", "res5"),
                "MODEL.DETR.IN_FEATURE": "p5",
            },
            "stride 16, 8 and 4, but the backbone gives p3 (8), p4 (16)",
        ),
        ({"MODEL.DETR.FREEZE_DETR": True}, "FREEZE_DETR is True, which needs masks: set MODEL.MASK_ON True"),
        ({"MODEL.DETR.PANOPTIC.ENABLED": True}, "PANOPTIC.ENABLED is True, which needs masks"),
        ({**MASKS, "MODEL.DETR.PANOPTIC.STUFF_MERGE": "none"}, "is 'none': it must be one of original, exact"),
        (
            {**MASKS, "MODEL.DETR.PANOPTIC.ENABLED": True, "MODEL.DETR.NUM_CLASSES": 9},
            "has metadata of 9 classes, things and stuff",
        ),
        ({"MODEL.DETR.DENOISING.COPIES": 0}, "MODEL.DETR.DENOISING.COPIES is 0: it must be at least 1"),
        ({"MODEL.DETR.QUERY_GROUPS": 0}, "MODEL.DETR.QUERY_GROUPS is 0: it must be at least 1"),
        ({"MODEL.DETR.DENOISING.BOX_NOISE": 1.5}, "MODEL.DETR.DENOISING.BOX_NOISE is 1.5: it must be from 0 to 1"),
        (
            {"MODEL.DETR.DENOISING.BOX_NOISE": 0.0, "MODEL.DETR.DENOISING.ENABLED": True},
            "DENOISING.BOX_NOISE is 0, so that a negative would be the same query as its positive",
        ),
        ({"MODEL.DETR.DENOISING.LABEL_NOISE": -0.1}, "DENOISING.LABEL_NOISE is -0.1: it must be from 0 to 1"),
        ({**MASKS, **FROZEN, "MODEL.DETR.QUERY_GROUPS": 2}, "MODEL.DETR.QUERY_GROUPS would train nothing"),
        ({**MASKS, **FROZEN, "MODEL.DETR.ANCHOR_QUERIES": True}, "MODEL.DETR.ANCHOR_QUERIES would train nothing"),
        (
            {**MASKS, "MODEL.DETR.FROZEN_WEIGHTS": "boxes.pth", "MODEL.DETR.DENOISING.ENABLED": True},
            "MODEL.DETR.DENOISING.ENABLED would train nothing, because MODEL.DETR.FREEZE_DETR or FROZEN_WEIGHTS",
        ),
        ({**ODD_WIDTH, "MODEL.DETR.ANCHOR_QUERIES": True}, "HIDDEN_DIM 34 is not divisible by 4: an embedded box"),
        ({**ODD_WIDTH, "MODEL.DETR.DENOISING.ENABLED": True}, "HIDDEN_DIM 34 is not divisible by 4: an embedded box"),
    ],
    ids=str,
)
def test_bad_config_values_are_reported(tiny_config, settings, message):
    with pytest.raises(InputError, match=re.escape(message)):
        build(tiny_config, settings)


def test_frozen_weights_without_masks_freeze_nothing(tiny_config):
    """The trainer goes on without them: what is for training alone is then as good as without the key."""
    model = build(tiny_config, {"MODEL.DETR.FROZEN_WEIGHTS": "boxes.pth", "MODEL.DETR.QUERY_GROUPS": 2})
    assert all(p.requires_grad for p in model.parameters())
