"""Attention weights: by hand, against the formula, and in every kind of model."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from detr.errors import InputError
from detr.modeling import attention_maps
from detr.modeling.attention_maps import attention
from detr.modeling.meta_arch import Detr
from detr.modeling.panoptic import panoptic_queries
from tests.conftest import QUICKSTART, ROOT, TINY, make_input
from tests.finder import BlobFinder
from tests.lively import batch, build_lively
from tests.modeling.test_memory_and_precision import MASKS_ON_RESNET50

PANOPTIC = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"


@pytest.fixture(scope="module")
def model():
    return build_lively(QUICKSTART, {**TINY, "MODEL.DETR.ENC_LAYERS": 2})


def test_one_head_by_hand():
    """softmax([0, ln 2]) is 1/3 and 2/3; a third key is padding."""
    module = nn.MultiheadAttention(2, 1, batch_first=True).eval()
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(2).repeat(3, 1))
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    key = torch.tensor([[[0.0, 0.0], [math.log(2) * math.sqrt(2), 0.0], [5.0, 0.0]]])
    padding = torch.tensor([[False, False, True]])
    call = attention_maps._Call((query, key, key), {"key_padding_mask": padding, "need_weights": False}, None)
    weights = attention_maps._weights(module, call, 0)
    torch.testing.assert_close(weights, torch.tensor([[[1 / 3, 2 / 3, 0], [0.5, 0.5, 0]]]))
    torch.testing.assert_close(attention_maps._weights(module, call, 0, torch.tensor([1])), weights[:, [1]])


def by_formula(module, query, key, padding):
    """softmax(q k / sqrt(d)) of each head, (M, T, S), in double precision; query (T, d), key (S, d), padding (S,)."""
    d, heads = module.embed_dim, module.num_heads
    q_weight, k_weight, _ = module.in_proj_weight.double().split(d)
    q_bias, k_bias, _ = module.in_proj_bias.double().split(d)
    q = (query.double() @ q_weight.T + q_bias).unflatten(-1, (heads, d // heads)).movedim(1, 0)
    k = (key.double() @ k_weight.T + k_bias).unflatten(-1, (heads, d // heads)).movedim(1, 0)
    products = q @ k.mT / math.sqrt(d // heads)
    return products.masked_fill(padding, -torch.inf).softmax(-1)


@torch.no_grad()
def test_weights_are_those_of_the_formula_at_the_points_and_without_the_padding(model):
    """The first image fills 8 x 6 cells of 16 pixels in a batch of 8 x 10 cells, the second 4 x 10."""
    inputs = [make_input([], [], (128, 96), 0), make_input([], [], (64, 160), 1)]
    inputs[0].update(height=256, width=192)  # each cell is 32 pixels of the output
    points = [[(0, 0), (33, 95), (192, 256)], [(159, 63)]]
    cells = [[(0, 0), (2, 1), (7, 5)], [(3, 9)]]  # row and column
    seen = {}
    layers = {"encoder": model.transformer.encoder.layers[1].self_attn}
    layers["decoder"] = model.transformer.decoder.layers[0].multihead_attn
    for name, module in layers.items():
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen.update({name: (*args[:2], kwargs["key_padding_mask"])}),
            with_kwargs=True,
        )
    found = attention(model, inputs, points=points, decoder_layers=[0, -1], encoder_layers=[-1])
    for module in layers.values():
        module._forward_pre_hooks.clear()
    for index, (x, (h, w)) in enumerate(zip(found, [(8, 6), (4, 10)], strict=True)):
        for name, maps in (("encoder", x.encoder[0]), ("decoder", x.decoder[0])):
            expected = by_formula(layers[name], *(tensor[index] for tensor in seen[name]))
            expected = expected.unflatten(-1, (8, 10))[..., :h, :w].float()
            if name == "encoder":
                expected = expected[:, [10 * row + column for row, column in cells[index]]]
            torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(maps.shape[:2]))
        assert x.decoder.shape == (2, 4, 20, h, w)
        assert x.points.tolist() == [list(map(float, point)) for point in points[index]]
    assert [x.extent for x in found] == [(192, 256), (160, 64)]


def test_a_feature_map_that_is_no_multiple_of_the_stride_covers_more_than_the_image(model):
    """100 pixels of a batch of 128 x 128 fill 7 cells of 16 pixels: nearest-neighbor samples at 0, 16, ..., 96."""
    found = attention(model, [make_input([], [], (100, 128)), make_input([], [], (128, 60))])
    assert [x.decoder.shape[-2:] for x in found] == [(7, 8), (8, 4)]
    assert [x.extent for x in found] == [(128, 112), (64, 128)]


def test_outputs_stay_the_same_and_no_hook_is_left(model):
    inputs = batch([(128, 96), (64, 160)])
    expected = model(inputs)
    for x, output in zip(attention(model, inputs), expected, strict=True):
        for name, value in output["instances"].get_fields().items():
            found = x.output["instances"].get(name)
            assert torch.equal(getattr(found, "tensor", found), getattr(value, "tensor", value))
    with pytest.raises(RuntimeError):  # an image that is larger than memory
        attention(model, [{"image": torch.zeros(3, 2**20, 1).expand(3, 2**20, 2**20)}])
    assert not any(module._forward_hooks for module in model.modules())


def test_objects_come_best_first_with_their_queries(model):
    (x,) = attention(model, batch([(96, 128)]), threshold=0.6)
    scores, queries = x.objects.scores, x.objects.pred_queries
    assert 3 < len(scores) < 20
    assert torch.equal(scores, scores.sort(descending=True).values)
    instances = x.output["instances"]
    assert sorted(queries.tolist()) == (instances.scores >= 0.6).nonzero()[:, 0].tolist()
    assert torch.equal(instances.pred_boxes.tensor[queries], x.objects.pred_boxes.tensor)
    centers = x.objects.pred_boxes.get_centers()[:4]
    assert torch.equal(x.points, centers.clamp(torch.zeros(2), torch.tensor([170.0, 211.0])))


def test_a_subclass_decides_which_objects_are_kept(tiny_config):
    class Three(Detr):
        def postprocess(self, *args):
            return [{"instances": x["instances"][[7, 2, 5]]} for x in super().postprocess(*args)]

    model = Three(tiny_config()).eval()
    (x,) = attention(model, batch([(96, 128)]), threshold=0)
    assert sorted(x.objects.pred_queries.tolist()) == [2, 5, 7]


def test_of_a_panoptic_model_stuff_is_shown_too():
    model = build_lively(PANOPTIC, {**TINY, "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35})
    inputs = batch([(96, 128)])
    (x,) = attention(model, inputs)
    with torch.no_grad():
        outputs = model.forward_network(model.preprocess(inputs), return_intermediate=False)
    queries, labels, _ = panoptic_queries(outputs.logits[-1, 0], 0.35)
    order = x.objects.pred_queries.argsort()
    assert torch.equal(x.objects.pred_queries[order], queries)
    assert torch.equal(x.objects.pred_classes[order], labels)
    assert (labels >= 4).any()
    assert (labels < 4).any()
    assert x.objects.image_size == (211, 170)


DC5 = {**MASKS_ON_RESNET50, "MODEL.RESNETS.RES5_DILATION": 2}


@pytest.mark.parametrize(
    ("settings", "cells"),
    [
        (MASKS_ON_RESNET50, (4, 3)),  # folded, since its norms are frozen
        (DC5, (8, 6)),
        ({"MODEL.DETR.INFERENCE_DTYPE": "bfloat16"}, (8, 6)),
        ({"MODEL.DETR.PRE_NORM": True, "MODEL.DETR.ACTIVATION_CHECKPOINT": ("transformer",)}, (8, 6)),
        ({"MODEL.DETR.ANCHOR_QUERIES": True, "MODEL.DETR.DENOISING.ENABLED": True}, (8, 6)),
    ],
    ids=["masks", "DC5", "bfloat16", "pre-norm", "anchors"],
)
def test_every_kind_of_model(settings, cells, tiny_config):
    model = build_model(tiny_config(settings)).eval()
    for x, (h, w) in zip(
        attention(model, batch([(128, 96), (96, 128)]), threshold=0), (cells, cells[::-1]), strict=True
    ):
        for maps, count in ((x.decoder, 20), (x.encoder, 4)):
            assert maps.shape == (1, 4, count, h, w)
            assert maps.dtype == torch.float32
            torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(maps.shape[:3]))
            assert maps.std() > 0


def test_half_precision_rounds_the_maps_a_little(model):
    inputs = batch([(96, 128)])
    (exact,) = attention(model, inputs)
    model.inference_dtype = torch.bfloat16
    try:
        (rounded,) = attention(model, inputs, points=[exact.points.tolist()])
    finally:
        model.inference_dtype = torch.float32
    assert 0 < (exact.decoder - rounded.decoder).abs().max() < 0.1


def test_an_encoder_without_layers_has_no_maps(tiny_config):
    model = build_model(tiny_config({"MODEL.DETR.ENC_LAYERS": 0})).eval()
    (x,) = attention(model, batch([(96, 128)]), threshold=0)
    assert x.encoder.numel() == 0
    assert x.decoder.shape == (1, 4, 20, 6, 8)


def test_what_cannot_be_shown_is_one_line(model, tiny_config):
    inputs = batch([(96, 128)])
    with pytest.raises(InputError, match="attention of Linear cannot be shown"):
        attention(nn.Linear(1, 1), inputs)
    with pytest.raises(InputError, match=r"call model\.eval\(\) first"):
        attention(build_model(tiny_config()), inputs)
    with pytest.raises(InputError, match="the decoder has no layer 2: it has 2"):
        attention(model, inputs, decoder_layers=[2])
    with pytest.raises(InputError, match="the encoder has no layer -3: it has 2"):
        attention(model, inputs, encoder_layers=[-3])
    with pytest.raises(InputError, match="the point 171,3 is outside the image, which has 170 x 211 pixels"):
        attention(model, inputs, points=[[(3, 3), (171, 3)]])
    with pytest.raises(InputError, match="BlobFinder does not run its transformer"):
        attention(BlobFinder(tiny_config()).eval(), inputs)


def test_a_model_that_runs_images_one_by_one_must_be_shown_them_so(tiny_config):
    class OneByOne(Detr):
        def inference(self, batched_inputs):
            return [super(OneByOne, self).inference([x])[0] for x in batched_inputs]

    model = OneByOne(tiny_config()).eval()
    assert len(attention(model, batch([(96, 128)]))) == 1
    with pytest.raises(InputError, match="one image after the other"):
        attention(model, batch([(96, 128), (96, 128)]))
