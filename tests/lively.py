"""A model that predicts many things before any training, and the comparison of two models' predictions."""

from typing import Any

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn

from detr.engine.defaults import load_config
from tests.conftest import as_opts, make_input


def build_lively(config: object, settings: dict[str, Any]) -> Any:
    """The Detr of a config file with these settings, in evaluation mode, with lively weights."""
    torch.manual_seed(3)
    return enliven(build_model(load_config(str(config), as_opts(settings))))


@torch.no_grad()
def enliven(model: Any) -> Any:
    """Fresh weights make all queries alike: these give many classes, many scores and masks of some shape."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.7, 1.4, generator=generator)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.query_embed.weight.normal_(0, 2, generator=generator)
    if model.training_queries is not None and model.training_queries.anchors is not None:
        model.training_queries.offsets.normal_(0, 2, generator=generator)
    for module in model.transformer.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.in_proj_weight[: -module.embed_dim].mul_(3)  # of queries and keys: each query looks elsewhere
    model.eval()
    images = model.preprocess(batch([(128, 128), (96, 128), (20, 150), (60, 40)]))
    outputs = model.forward_network(images, return_intermediate=False)
    _spread(model.class_embed, outputs.logits[-1], 3.0)
    _spread(model.bbox_embed.layers[-1], outputs.boxes[-1].logit(), 1.0)
    if model.mask_head is not None:
        heads = model.mask_head.attention.heads
        model.mask_head.lay1.weight[:, -heads:] *= 300  # where a query looks counts, or all have one mask
        for adapter in (model.mask_head.adapter1, model.mask_head.adapter2, model.mask_head.adapter3):
            adapter.weight.mul_(0.1)
        queries = torch.arange(model.query_embed.num_embeddings)
        masks = model.mask_head(outputs.mask_features, torch.zeros_like(queries), queries)
        _spread(model.mask_head.out_lay, masks[..., None], 3.0)
    return model


def _spread(layer: nn.Linear | nn.Conv2d, outputs: Tensor, std: float) -> None:
    """Changes the layer so that its outputs (..., C) would have had mean 0 and this deviation."""
    outputs = outputs.flatten(0, -2)
    scale = std / outputs.std(0)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - outputs.mean(0)) * scale)


@torch.no_grad()
def raw_outputs(model: Any) -> list[Tensor]:
    """Logits and boxes of two images in evaluation mode, and the masks of the first one's queries if there are any."""
    outputs = model.eval().forward_network(model.preprocess(batch([(96, 128), (60, 40)])), return_intermediate=False)
    found = [outputs.logits, outputs.boxes]
    if model.mask_head is not None:
        queries = torch.arange(outputs.logits.shape[2])
        found.append(model.mask_head(outputs.mask_features, torch.zeros_like(queries), queries))
    return found


def batch(sizes: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Inputs of these sizes (height, width); the last one's output is of another size."""
    inputs = [make_input([], [], size, seed) for seed, size in enumerate(sizes)]
    inputs[-1].update(height=211, width=170)
    return inputs


@torch.no_grad()
def assert_same(model: nn.Module, expected: nn.Module, sizes: list[tuple[int, int]], tolerance: float = 1e-3) -> int:
    """Asserts that two models predict the same; ``expected`` is on the CPU.

    tolerance: of a score; of a box, as part of the image; and of masks and maps, the part of the pixels

    Returns how many segments the maps have.
    """
    inputs = batch(sizes)
    num_instances = num_segments = 0
    for found, truth in zip(model(inputs), expected(inputs), strict=True):
        assert found.keys() == truth.keys()
        ours, theirs = found["instances"].to("cpu"), truth["instances"]
        assert ours.image_size == theirs.image_size
        num_instances += len(theirs)
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=tolerance)
        scale = torch.tensor(ours.image_size).flip(0).repeat(2)
        boxes = (x.pred_boxes.tensor / scale for x in (ours, theirs))
        torch.testing.assert_close(*boxes, rtol=0, atol=tolerance)
        assert ours.has("pred_masks") == theirs.has("pred_masks")
        if len(theirs) and ours.has("pred_masks"):
            assert 0.05 < theirs.pred_masks.float().mean() < 0.95
            assert (ours.pred_masks != theirs.pred_masks).float().mean() < tolerance
        if "panoptic_seg" in truth:
            (our_map, our_segments), (map_, segments) = found["panoptic_seg"], truth["panoptic_seg"]
            assert [x["category_id"] for x in our_segments] == [x["category_id"] for x in segments]
            assert (our_map.cpu() != map_).float().mean() < tolerance
            num_segments += len(segments)
    assert num_instances > 0
    return num_segments
