"""The models for torch.hub do what the authors' notebooks ask of theirs: the same tensors in, the same dicts out."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from detr.checkpoint.formats import to_detectron2
from detr.checkpoint.rows import PANOPTIC, THINGS, coco_rows
from detr.torch_hub.model import HubDetr, hub_model
from detr.torch_hub.postprocessing import BoxPostprocessor, PanopticPostprocessor
from tests.parity.oracle import PANOPTIC_CLASSES, lively_original, load_oracle, original_checkpoint, run_original
from tests.parity.pairs import image_batch

pytestmark = pytest.mark.slow
SINGLE = [(163, 229)]
PADDED = [(160, 224), (192, 140)]  # (height, width): a batch in which both images are padded


def with_weights_of(original: Any, name: str) -> HubDetr:
    model = hub_model(name).double()
    model.load_state_dict(to_detectron2(original_checkpoint(original)["model"]).state)
    return model


@pytest.fixture(scope="module")
def boxes() -> tuple[Any, HubDetr]:
    """The original's R50 and ours, in double precision."""
    original = lively_original("detr_R_50", aux_loss=False)[0].double()
    return original, with_weights_of(original, "detr_R_50")


@pytest.fixture(scope="module")
def panoptic() -> tuple[Any, HubDetr]:
    original = lively_original("detr_R_50", num_classes=PANOPTIC_CLASSES, masks=True, aux_loss=False)[0].double()
    with torch.no_grad():
        for parameter in original.detr.class_embed.parameters():
            parameter *= 2  # queries are sure
    return original, with_weights_of(original, "detr_R_50_panoptic")


def assert_same_outputs(found: dict[str, Tensor], expected: dict[str, Tensor], classes: int) -> None:
    assert found.keys() == expected.keys()
    assert all(found[key].shape == expected[key].shape for key in found)
    for key in found.keys() - {"pred_logits"}:
        torch.testing.assert_close(found[key], expected[key], atol=1e-8, rtol=1e-9)
    # The rows of ids that no category has never win, in theirs by the lively weights.
    scores, truth = (x["pred_logits"].softmax(-1) for x in (found, expected))
    torch.testing.assert_close(scores, truth, atol=1e-9, rtol=0)
    kept = coco_rows(classes)
    torch.testing.assert_close(found["pred_logits"][..., kept], expected["pred_logits"][..., kept], atol=1e-8, rtol=0)
    assert len(truth.argmax(-1).unique()) > 5


@torch.no_grad()
def test_boxes(boxes: tuple[Any, HubDetr]) -> None:
    original, ours = boxes
    listed = image_batch(PADDED)
    for images in (image_batch(SINGLE)[0][None], listed):
        found, expected = ours(images), original(images)
        assert_same_outputs(found, expected, THINGS)
        sizes = torch.tensor([[427, 640], [1080, 333]])[: len(found["pred_boxes"])]
        for ours_of, theirs_of in zip(
            BoxPostprocessor()(found, sizes), load_oracle().PostProcess()(expected, sizes), strict=True
        ):
            assert ours_of.keys() == theirs_of.keys()
            assert torch.equal(ours_of["labels"], theirs_of["labels"])
            for key in ("scores", "boxes"):
                torch.testing.assert_close(ours_of[key].double(), theirs_of[key], atol=1e-3, rtol=1e-5)
    nested = ours(load_oracle().nested_tensor_from_tensor_list(listed))
    assert all(torch.equal(nested[key], found[key]) for key in found)


@torch.no_grad()
def test_attention_by_hooks(boxes: tuple[Any, HubDetr]) -> None:
    """What the notebook on attention hangs its hooks on, in its own words: the same weights and feature maps."""
    seen: dict[str, list[Any]] = {"original": [], "ours": []}
    image = image_batch(SINGLE)[0][None]
    for name, model in zip(seen, boxes, strict=True):
        hooks = [
            model.backbone[-2].register_forward_hook(lambda *x, n=name: seen[n].append(x[2]["0"].tensors)),
            model.transformer.encoder.layers[-1].self_attn.register_forward_hook(
                lambda *x, n=name: seen[n].append(x[2][1])
            ),
            model.transformer.decoder.layers[-1].multihead_attn.register_forward_hook(
                lambda *x, n=name: seen[n].append(x[2][1])
            ),
        ]
        without = model(image)["pred_logits"]
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(model(image)["pred_logits"], without, atol=1e-9, rtol=0)
    for found, expected in zip(seen["ours"], seen["original"], strict=True):
        torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    features, of_encoder, of_decoder = seen["ours"]
    h, w = features.shape[-2:]
    assert of_encoder.shape == (1, h * w, h * w)
    assert of_decoder.shape == (1, 100, h * w)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("target", [None, (211, 170)])
def test_panoptic(panoptic: tuple[Any, HubDetr], target: tuple[int, int] | None) -> None:
    original, ours = panoptic
    (image,) = image_batch([(160, 224)])
    found, expected = ours(image[None]), run_original(original, [image])
    assert_same_outputs(found, expected, PANOPTIC)
    sizes = torch.as_tensor(image.shape[-2:])[None]
    targets = () if target is None else (torch.tensor([target]),)
    (result,) = PanopticPostprocessor()(found, sizes, *targets)
    things = {i: i <= 90 for i in range(250)}
    (truth,) = load_oracle().PostProcessPanoptic(things, threshold=0.85)(expected, sizes, *targets)
    assert result.keys() == truth.keys()
    maps = [np.array(Image.open(io.BytesIO(x["png_string"]))) for x in (result, truth)]
    assert maps[0].shape == (*(target or (160, 224)), 3)
    assert (maps[0] != maps[1]).any(-1).mean() < 1e-3  # rounding
    assert [{**x, "area": 0} for x in result["segments_info"]] == [{**x, "area": 0} for x in truth["segments_info"]]
    assert len(truth["segments_info"]) > 3
    assert {x["isthing"] for x in truth["segments_info"]} == {True, False}


@torch.no_grad()
def test_panoptic_maps_of_a_padded_batch_are_those_of_its_images(panoptic: tuple[Any, HubDetr]) -> None:
    """Of the same outputs; the original stretches the padding into its maps."""
    original, ours = panoptic
    sizes = [(96, 160), (128, 96)]
    found = ours(image_batch(sizes))
    assert_same_outputs(found, run_original(original, image_batch(sizes)), PANOPTIC)
    results = PanopticPostprocessor()(found, sizes)
    for i, (height, width) in enumerate(sizes):
        of_image = {"pred_logits": found["pred_logits"][i : i + 1]}
        of_image["pred_masks"] = found["pred_masks"][i : i + 1, :, : height // 4, : width // 4]
        (alone,) = PanopticPostprocessor()(of_image, sizes[i : i + 1])
        maps = [np.array(Image.open(io.BytesIO(x["png_string"]))) for x in (results[i], alone)]
        # At the border to the padding, bilinear sampling sees one more row.
        assert (maps[0] != maps[1]).any(-1).mean() < 0.05
        assert len(results[i]["segments_info"]) > 2
