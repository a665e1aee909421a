"""What an image's results owe to the other images of its batch: nothing but the padding, and nothing at all on request.

A batch is padded to its largest image. What is behind the padding is kept out everywhere but in convolutions and norms
of maps (see docs/reliability.md).
"""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from torch import nn

from detr.engine.defaults import load_config
from detr.modeling.matcher import Targets
from tests.conftest import QUICKSTART, TINY, as_opts, make_input
from tests.lively import batch, build_lively, enliven

PANOPTIC = QUICKSTART.with_name("shapes_panoptic.yaml")
SIZES = [(96, 128), (64, 160), (96, 128), (33, 47)]
THRESHOLD = {"MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35}


class Patches(Backbone):
    """A backbone without borders: no patch sees beyond itself."""

    stride = 16

    def __init__(self):
        super().__init__()
        self.projection = nn.Conv2d(3, 24, self.stride, self.stride)

    def forward(self, x):
        return {"patches": self.projection(x.to(self.projection.weight.dtype))}

    def output_shape(self):
        return {"patches": ShapeSpec(channels=24, stride=self.stride)}


@pytest.fixture
def without_borders():
    """In double precision."""
    model = build_model(load_config(str(QUICKSTART), as_opts(TINY)))
    torch.manual_seed(0)
    model.backbone, model.in_feature, model.input_proj = Patches(), "patches", nn.Conv2d(24, 32, 1)
    return enliven(model).double()


@torch.no_grad()
def test_what_reads_no_border_does_not_see_the_padding(without_borders):
    """Positions, attention, heads, matching, losses of boxes and results."""
    model = without_borders
    sizes = [(96, 128), (64, 160), (160, 48)]  # of whole patches
    inputs = batch(sizes)
    images = model.preprocess(inputs)
    together = model.forward_network(images, return_intermediate=True)
    truth = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.6, 0.5, 0.4, 0.2], [0.5, 0.5, 0.9, 0.9]])
    labels = torch.tensor([1, 2, 0])
    targets = Targets(labels.repeat(3), truth.repeat(3, 1), [3] * 3)
    matches = model.criterion.matcher(together.logits, together.boxes, targets)
    found = model(inputs)
    for index, x in enumerate(inputs):
        alone = model.forward_network(model.preprocess([x]), return_intermediate=True)
        torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], rtol=0, atol=1e-11)
        torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], rtol=0, atol=1e-12)
        here = matches.image == index
        expected = model.criterion.matcher(alone.logits, alone.boxes, Targets(labels, truth, [3]))
        assert torch.equal(matches.query[here], expected.query)
        assert torch.equal(matches.target[here] - 3 * index, expected.target)
        assert_close(found[index], model([x])[0])


def assert_close(found, expected):
    ours, theirs = found["instances"], expected["instances"]
    assert ours.image_size == theirs.image_size
    assert torch.equal(ours.pred_classes, theirs.pred_classes)
    torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.pred_boxes.tensor, theirs.pred_boxes.tensor, rtol=0, atol=0.01)  # in pixels
    assert ours.has("pred_masks") == theirs.has("pred_masks")
    if ours.has("pred_masks"):
        assert (ours.pred_masks != theirs.pred_masks).float().mean() < 1e-4
        assert theirs.pred_masks.float().mean() > 0.05
    if "panoptic_seg" in expected:
        (map_, segments), (expected_map, expected_segments) = found["panoptic_seg"], expected["panoptic_seg"]
        assert [x["category_id"] for x in segments] == [x["category_id"] for x in expected_segments]
        assert (map_ != expected_map).float().mean() < 1e-4


@pytest.mark.parametrize("config", [QUICKSTART, PANOPTIC], ids=["boxes", "masks and panoptic"])
def test_images_alone_have_the_results_of_batches_of_one(config):
    model = build_lively(config, {**TINY, **THRESHOLD, "MODEL.DETR.IMAGES_ALONE": True})
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    inputs = batch(SIZES)
    found = model(inputs)
    assert seen == [(2, 3, 96, 128), (1, 3, 64, 160), (1, 3, 33, 47)]
    expected = [model([x])[0] for x in inputs]
    for ours, theirs in zip(found, expected, strict=True):
        assert_close(ours, theirs)
    if config == PANOPTIC:
        assert any(x["panoptic_seg"][1] for x in expected)
    model.images_alone = False
    padded = model(inputs)[0]["instances"].scores
    assert (padded - expected[0]["instances"].scores).abs().max() > 1e-3


def test_in_training_the_batch_stays_whole(tiny_config):
    model = build_model(tiny_config({"MODEL.DETR.IMAGES_ALONE": True})).train()
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    model([make_input([[10.0, 12.0, 50.0, 60.0]], [1], size) for size in SIZES])
    assert seen == [len(SIZES)]


def test_a_subclass_adds_to_each_output_once(tiny_config):
    model = build_model(tiny_config({"MODEL.DETR.IMAGES_ALONE": True})).eval()

    class Counting(type(model)):
        def inference(self, batched_inputs):
            return [{**x, "times": x.get("times", 0) + 1} for x in super().inference(batched_inputs)]

    model.__class__ = Counting
    assert [x["times"] for x in model(batch(SIZES))] == [1] * len(SIZES)
