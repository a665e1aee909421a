import pytest
import torch
import torchvision
from detectron2.modeling import build_model

import converter
from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.files import load_file
from detr.checkpoint.paths import torchvision_url
from detr.errors import InputError
from tests.parity.oracle import build_original, original_checkpoint
from tests.parity.pairs import config


def test_original_weights_load_directly_and_through_the_converter(tmp_path, capsys):
    original, _, _ = build_original("detr_R_50")
    source, output = str(tmp_path / "original.pth"), str(tmp_path / "converted.pth")
    torch.save({**original_checkpoint(original), "epoch": 7}, source)
    converter.main(["--source_model", source, "--output_model", output])
    assert "class rows 92 -> 81" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"converted\.pth exists: .* add --overwrite"):
        converter.main(["--source_model", source, "--output_model", output])

    states = []
    for path in (source, output):
        model = build_model(config("detr_R_50"))
        assert "epoch" not in DetrCheckpointer(model).load(path)
        states.append(model.state_dict())
    converted = load_file(output)["model"]
    assert converted.keys() == states[0].keys()
    for state in states:
        assert all(torch.equal(state[key], converted[key]) for key in converted)


def test_a_torchvision_resnet_becomes_the_backbone(tmp_path):
    resnet = torchvision.models.resnet50(weights=None)
    for buffer in resnet.buffers():
        buffer.add_(torch.rand(()).to(buffer.dtype))
    path = str(tmp_path / "resnet50.pth")
    torch.save(resnet.state_dict(), path)
    model = build_model(config("detr_R_50")).eval()
    before = model.query_embed.weight.clone()
    DetrCheckpointer(model).load(path)
    assert torch.equal(model.query_embed.weight, before)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        body = torch.nn.Sequential(*list(resnet.eval().children())[:-2])
        torch.testing.assert_close(model.backbone(image)["res5"], body(image), rtol=1e-3, atol=1e-4)


def test_torchvision_names_have_an_address():
    assert torchvision_url("torchvision://resnet101").endswith("resnet101-63fe2227.pth")
    with pytest.raises(InputError, match="no ImageNet weights named 'resnet1010'"):
        torchvision_url("torchvision://resnet1010")
