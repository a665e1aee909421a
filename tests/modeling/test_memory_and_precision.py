"""The keys that trade time or digits for memory and speed change nothing else."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks

from detr.errors import InputError
from tests.conftest import make_input
from tests.modeling import training_parts

BOXES = [[10.0, 12.0, 50.0, 60.0], [60.0, 20.0, 100.0, 80.0]]
MASKS_ON_RESNET50 = {
    "MODEL.MASK_ON": True,
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.WIDTH_PER_GROUP": 8,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.OUT_FEATURES": ("res5",),
    "MODEL.DETR.IN_FEATURE": "res5",
    "MODEL.DETR.DROPOUT": 0.2,
}
PARTS = ("backbone", "transformer", "mask_head")
TRAINING = training_parts.PARTS["all"]


def build(tiny_config, **settings):
    torch.manual_seed(0)
    return build_model(tiny_config({**MASKS_ON_RESNET50, **settings}))


def batch():
    inputs = [make_input(BOXES[:n], [1, 3][:n], size) for n, size in ((2, (96, 128)), (1, (90, 101)))]
    for x in inputs:
        masks = torch.rand(len(x["instances"]), *x["instances"].image_size, generator=torch.Generator().manual_seed(1))
        x["instances"].gt_masks = BitMasks(masks > 0.5)
    return inputs


def step(model):
    """Losses, gradients, and the bytes of the tensors kept for these."""
    kept = {}
    parameters = {p.data_ptr() for p in model.parameters()}

    def keep(x):
        if x.data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        losses = model(batch())
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: x.detach() for name, x in losses.items()}, gradients, sum(kept.values())


@pytest.mark.parametrize("training", [{}, TRAINING], ids=["plain", "with training queries"])
@pytest.mark.parametrize("parts", [*((part,) for part in PARTS), PARTS], ids=str)
def test_activation_checkpointing_gives_the_same_step_with_less_memory(tiny_config, parts, training):
    """Dropout too falls where it fell the first time."""
    losses, gradients, kept = step(build(tiny_config, **training).train())
    checkpointed = build(tiny_config, **training, **{"MODEL.DETR.ACTIVATION_CHECKPOINT": parts}).train()
    found, found_gradients, found_kept = step(checkpointed)
    assert found == losses
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert found_kept < (0.6 if parts == PARTS else 0.99) * kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MODEL.DETR.ACTIVATION_CHECKPOINT": ("encoder",)}, r"\['encoder'\]: it takes any of backbone, transformer"),
        (
            {"MODEL.DETR.ACTIVATION_CHECKPOINT": ("backbone",), "MODEL.RESNETS.NORM": "BN"},
            "for a ResNet or a timm model without trained batch norms .* build_resnet_backbone: leave it out",
        ),
        ({"MODEL.DETR.DROPOUT": 1.0}, "DROPOUT is 1.0: it must be at least 0 and below 1"),
        ({"MODEL.DETR.INFERENCE_DTYPE": "half"}, "is 'half': it must be one of float32, bfloat16, float16"),
    ],
    ids=str,
)
def test_bad_config_values_are_reported(tiny_config, settings, message):
    with pytest.raises(InputError, match=message):
        build(tiny_config, **settings)


@torch.no_grad()
def test_bfloat16_is_for_inference_alone_and_spares_the_heads(tiny_config):
    plain = build(tiny_config).eval()
    model = build(tiny_config, **{"MODEL.DETR.INFERENCE_DTYPE": "bfloat16"}).eval()
    seen = []
    for name in ("input_proj", "class_embed", "bbox_embed", "mask_head.lay2"):
        model.get_submodule(name).register_forward_hook(lambda *a: seen.append(a[2].dtype))
    found, expected = (m(batch())[0]["instances"] for m in (model, plain))
    assert seen[:4] == [torch.bfloat16, torch.float32, torch.float32, torch.bfloat16]
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
    assert not torch.equal(found.scores, expected.scores)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0.02)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=2.0)  # pixels

    torch.manual_seed(4)
    of_plain = plain.train()(batch())
    torch.manual_seed(4)
    assert model.train()(batch()) == of_plain


@pytest.mark.parametrize("part", training_parts.PARTS)
def test_training_queries_in_mixed_precision(tiny_config, part):
    """The networks run in half precision, losses and embedded boxes do not."""
    _, model = training_parts.build_pair(tiny_config, {**training_parts.PARTS[part], "MODEL.MASK_ON": True})
    batches = [training_parts.make_batch(objects, masks=True) for objects in training_parts.OBJECTS]
    dtypes = []
    if model.training_queries.denoising is not None or model.training_queries.anchors is not None:
        model.training_queries.box_embed.register_forward_hook(lambda *a: dtypes.append(a[2].dtype))
    for inputs in batches:
        expected, _ = training_parts.step(model, inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses, gradients = training_parts.step(model, inputs)
        assert losses.keys() == expected.keys()
        assert {loss.dtype for loss in losses.values()} == {torch.float32}
        torch.testing.assert_close(sum(losses.values()), sum(expected.values()), rtol=0.05, atol=0)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(dtypes) <= {torch.float32}
