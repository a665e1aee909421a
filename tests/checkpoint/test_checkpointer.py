import torch
from detectron2.modeling import build_model

import converter
from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.files import load_file
from tests.parity.oracle import build_original, original_checkpoint
from tests.parity.pairs import config


def test_original_weights_load_directly_and_through_the_converter(tmp_path, capsys):
    original, _, _ = build_original("detr_R_50")
    source, output = str(tmp_path / "original.pth"), str(tmp_path / "converted.pth")
    torch.save({**original_checkpoint(original), "epoch": 7}, source)
    converter.main(["--source_model", source, "--output_model", output])
    assert "class rows 92 -> 81" in capsys.readouterr().out

    states = []
    for path in (source, output):
        model = build_model(config("detr_R_50"))
        incompatible = DetrCheckpointer(model).load(path)
        assert incompatible == {"iteration": -1} or "epoch" not in incompatible
        states.append(model.state_dict())
    converted = load_file(output)["model"]
    assert converted.keys() == states[0].keys()
    for state in states:
        assert all(torch.equal(state[key], converted[key]) for key in converted)
