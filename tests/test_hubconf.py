import inspect

import pytest
import torch

import hubconf
from detr import model_zoo
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
    classes = 133 if "panoptic" in name else 80
    assert {key: p.default for key, p in signature.parameters.items()} == {"pretrained": False, "num_classes": classes}
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


def test_torch_hub_finds_what_it_depends_on():
    # torch.hub refuses a model where one of these cannot be imported.
    assert {"torch", "detectron2"} <= set(hubconf.dependencies)
