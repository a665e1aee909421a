import copy
import inspect
import io

import numpy as np
import pytest
import torch
from PIL import Image

import hubconf
from detr import model_zoo
from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.rows import coco_rows
from detr.errors import InputError
from tests.conftest import ROOT, make_input

# As the original has them, and what each of them is here.
NAMES = {
    "detr_resnet50": "detr_R_50",
    "detr_resnet50_dc5": "detr_R_50_DC5",
    "detr_resnet101": "detr_R_101",
    "detr_resnet101_dc5": "detr_R_101_DC5",
    "detr_resnet50_panoptic": "detr_R_50_panoptic",
    "detr_resnet50_dc5_panoptic": "detr_R_50_DC5_panoptic",
    "detr_resnet101_panoptic": "detr_R_101_panoptic",
}


def test_torch_hub_lists_the_originals_names_alone():
    # What torch.hub.list shows.
    shown = {name for name in dir(hubconf) if callable(getattr(hubconf, name)) and not name.startswith("_")}
    assert shown == NAMES.keys()


@pytest.mark.parametrize(("name", "released"), NAMES.items())
def test_every_name_stands_for_its_model(name, released):
    function = getattr(hubconf, name)
    signature = inspect.signature(function)
    # In the original's order, so that arguments without names work.
    panoptic = {"threshold": 0.85} if "panoptic" in name else {}
    expected = {
        "pretrained": False,
        "num_classes": 133 if panoptic else 80,
        **panoptic,
        "return_postprocessor": False,
    }
    assert [*((key, p.default) for key, p in signature.parameters.items())] == [*expected.items()]
    assert function.__doc__.startswith(f"{released}: box AP {model_zoo.entry(released).box_ap}")


def test_torch_hub_loads_a_model(cache):
    model = torch.hub.load(str(ROOT), "detr_resnet50", source="local", num_classes=7)
    assert (model.num_classes, model.training, model.device.type) == (7, False, "cpu")
    with torch.no_grad():
        (output,) = model([make_input([], [])])
    assert len(output["instances"]) == 100
    assert list(cache.iterdir()) == []


def test_torch_hub_loads_a_panoptic_model(cache):
    model = torch.hub.load(str(ROOT), "detr_resnet50_panoptic", source="local")
    with torch.no_grad():
        (output,) = model([make_input([], [])])
    assert output["instances"].pred_masks.shape[1:] == (96, 128)
    assert output["panoptic_seg"][0].shape == (96, 128)
    assert all(parameter.requires_grad for parameter in model.class_embed.parameters())
    with torch.no_grad():
        own = torch.hub.load(str(ROOT), "detr_resnet50_panoptic", source="local", num_classes=5)
        (output,) = own([make_input([], [])])
    assert output.keys() == {"instances"}
    assert output["instances"].pred_masks.shape == (100, 96, 128)


@pytest.mark.parametrize("num_classes", [80, 91])
def test_a_model_answers_as_the_originals_does(cache, num_classes):
    """COCO's ids are counted where the classes are COCO's, whichever way their number is given."""
    model, postprocessor = torch.hub.load(
        str(ROOT), "detr_resnet50", source="local", num_classes=num_classes, return_postprocessor=True
    )
    image = make_input([], [])["image"]
    normalized = (image / 255 - model.pixel_mean) / model.pixel_std
    outputs = model(normalized[None])
    assert {key: x.shape for key, x in outputs.items()} == {"pred_logits": (1, 100, 92), "pred_boxes": (1, 100, 4)}
    assert outputs["pred_boxes"].requires_grad  # the caller has not switched gradients off
    (result,) = postprocessor(outputs, torch.tensor([[96, 128]]))
    (expected,) = model([{"image": image}])
    torch.testing.assert_close(result["boxes"], expected["instances"].pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(result["scores"], expected["instances"].scores)
    assert torch.equal(result["labels"], coco_rows(80)[expected["instances"].pred_classes])


def test_own_classes_are_counted_as_they_are(cache):
    model, postprocessor = hubconf.detr_resnet50_panoptic(num_classes=5, threshold=0.0, return_postprocessor=True)
    with torch.no_grad():
        outputs = model.train()([torch.rand(3, 96, 64), torch.rand(3, 64, 90)])
    assert outputs["pred_logits"].shape == (2, 100, 6)
    assert outputs["pred_masks"].shape == (2, 100, 24, 23)  # a quarter of 96 x 90, rounded up
    assert not model.postprocessor.panoptic
    results = postprocessor(outputs, [(96, 64), (64, 90)])
    assert all(x["isthing"] and 0 <= x["category_id"] < 5 for result in results for x in result["segments_info"])


def test_the_threshold_of_a_panoptic_model():
    model, postprocessor = hubconf.detr_resnet50_panoptic(threshold=0.3, return_postprocessor=True, num_classes=250)
    assert (model.num_classes, model.postprocessor.panoptic.score_threshold, postprocessor.threshold) == (133, 0.3, 0.3)
    logits = torch.full((1, 4, 251), -1e4)
    logits[0, :, 250] = 0.0
    logits[0, 0, 17] = 0.5  # a cat of score 0.62
    logits[0, 1, 200] = 0.0  # stuff of score 0.5, which is not above no-object
    logits[0, 2, 199] = 2.0  # stuff of score 0.88
    masks = torch.zeros(1, 4, 8, 8)
    masks[0, 0, :, :3], masks[0, 2, :, 3:] = 9.0, 9.0
    outputs = {"pred_logits": logits, "pred_masks": masks, "pred_boxes": torch.rand(1, 4, 4)}
    (result,) = postprocessor(outputs, [(32, 32)], [(16, 16)])
    assert result["segments_info"] == [
        {"id": 0, "category_id": 17, "isthing": True, "area": 96},
        {"id": 1, "category_id": 199, "isthing": False, "area": 160},
    ]
    pixels = np.array(Image.open(io.BytesIO(result["png_string"])))
    assert pixels.shape == (16, 16, 3)
    assert (pixels[:, :6] == 0).all()
    assert (pixels[:, 6:] == [1, 0, 0]).all()


@pytest.mark.parametrize("images", [torch.rand(3, 64, 64), [torch.zeros(3, 8, 8, dtype=torch.uint8)], ["photo.jpg"]])
def test_what_is_no_image_is_an_error_that_says_what_to_give(images):
    model = hubconf.detr_resnet50()
    with pytest.raises(InputError, match=r"give normalized float images, a tensor \(N, 3, H, W\)"):
        model(images)


def test_a_hub_model_is_saved_and_loaded_as_any_detr(tmp_path):
    model = hubconf.detr_resnet50(num_classes=3)
    plain = model_zoo.get("detr_R_50", pretrained=False, device="cpu", num_classes=3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    DetrCheckpointer(model, str(tmp_path)).save("own")
    DetrCheckpointer(plain).load(str(tmp_path / "own.pth"))
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in plain.state_dict().items())
    copied = copy.deepcopy(model)
    seen = []
    copied.backbone[-2].register_forward_hook(lambda module, inputs, output: seen.append(output["0"].tensors.shape))
    with torch.no_grad():
        copied([make_input([], [])])  # hooks see what Detectron2's form of input gives, too
        model([make_input([], [])])
    assert seen == [(1, 2048, 3, 4)]


def test_torch_hub_finds_what_it_depends_on():
    # torch.hub refuses a model where one of these cannot be imported.
    assert {"torch", "detectron2"} <= set(hubconf.dependencies)
