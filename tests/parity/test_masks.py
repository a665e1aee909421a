"""The same weights give the same masks: as logits, and as binary masks at output size."""

import pytest
import torch
from detectron2.structures import ImageList

from detr.modeling.postprocessing import instance_masks
from tests.parity.oracle import PANOPTIC_CLASSES, kept_rows, lively_original, load_oracle, run_original
from tests.parity.pairs import config, converted, image_batch

pytestmark = pytest.mark.slow

PADDED = [(160, 224), (197, 131)]  # (height, width): small, since all queries' masks take time in double precision
SINGLE = [(149, 171)]
OUTPUT_SIZES = [(320, 448), (120, 80)]  # larger than the input, and smaller


@pytest.fixture(scope="module", params=["detr_R_50", "detr_R_50_DC5", "detr_R_101"])
def panoptic(request):
    """The original and ours in double precision, one kind at a time."""
    original = lively_original(request.param, num_classes=PANOPTIC_CLASSES, masks=True)[0].double()
    cfg = config(request.param, folder="COCO-PanopticSegmentation")
    return original, converted(original, cfg).double()


def mask_logits(model, outputs):
    """(N, Q, H / 4, W / 4) of all queries."""
    n, q = outputs.logits.shape[1:3]
    image_of, query_of = torch.cartesian_prod(torch.arange(n), torch.arange(q)).unbind(1)
    return model.mask_head(outputs.mask_features, image_of, query_of).unflatten(0, (n, q))


@pytest.mark.parametrize("sizes", [PADDED, SINGLE], ids=["two padded images", "one odd size"])
@torch.no_grad()
def test_mask_logits(panoptic, sizes):
    original, ours = panoptic
    images = image_batch(sizes)
    expected = run_original(original, images)
    outputs = ours.forward_network(ImageList.from_tensors(images), return_intermediate=False)
    masks = expected["pred_masks"]
    assert masks.flatten(2).std(1).mean() > 1  # the queries' masks differ: else agreement says little
    torch.testing.assert_close(mask_logits(ours, outputs), masks, atol=1e-8, rtol=0)
    logits = expected["pred_logits"][..., kept_rows(PANOPTIC_CLASSES + 1)]
    torch.testing.assert_close(outputs.logits[-1], logits, atol=1e-9, rtol=0)
    torch.testing.assert_close(outputs.boxes[-1], expected["pred_boxes"], atol=1e-9, rtol=0)


@torch.no_grad()
def test_instance_masks_from_end_to_end():
    """Of the model for instances, through the original's own chain of postprocessing."""
    original, _, postprocessors = lively_original("detr_R_50", masks=True)
    ours = converted(original, config("detr_R_50", folder="COCO-InstanceSegmentation")).double()
    images = image_batch(PADDED)
    expected = {key: x.float() for key, x in run_original(original.double(), images).items() if key != "aux_outputs"}
    batched = ImageList.from_tensors(images)
    outputs = ours.forward_network(batched, return_intermediate=False)
    batch = [{"height": height, "width": width} for height, width in OUTPUT_SIZES]
    found = [x["instances"] for x in ours.postprocess(outputs, batch, batched)]

    sizes = torch.tensor(OUTPUT_SIZES)
    results = postprocessors["bbox"](expected, sizes)
    results = postprocessors["segm"](results, expected, sizes, torch.tensor(PADDED))
    for instances, result, size in zip(found, results, OUTPUT_SIZES, strict=True):
        assert instances.pred_masks.shape == (100, *size)
        assert torch.equal(instances.pred_masks, result["masks"][:, 0].bool())
        assert 0.2 < instances.pred_masks.float().mean() < 0.8
        torch.testing.assert_close(instances.scores, result["scores"])
        torch.testing.assert_close(instances.pred_boxes.tensor, result["boxes"])


def test_instance_masks_are_equal_down_to_rounding():
    """Logits about zero, where a comparison instead of the original's sigmoid would already differ."""
    logits = torch.randn(1, 64, 20, 22, generator=torch.Generator().manual_seed(0)) * 3e-7
    sizes = torch.tensor([[160, 176]]), torch.tensor([[80, 88]])  # output and input
    (result,) = load_oracle().PostProcessSegm()([{}], {"pred_masks": logits}, *sizes)
    expected = result["masks"][:, 0].bool()
    found = instance_masks(logits[0], (80, 88), (80, 88), (160, 176))
    assert torch.equal(found, expected)
    assert not torch.equal(found, instance_masks(logits[0] * 1e6, (80, 88), (80, 88), (160, 176)))
