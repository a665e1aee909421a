"""Any format into a ``Detr``: through ``DetrCheckpointer``, and in Detectron2's ``DefaultPredictor`` as it is."""

import argparse
import logging
import pickle

import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.formats import to_detectron2
from detr.checkpoint.source import read
from detr.convert.conversion import Request, convert
from detr.errors import InputError
from tests.checkpoint.samples import Mkdir, as_wrapper, small_original
from tests.parity.pairs import config

SMALL = {
    "MODEL.DETR.HIDDEN_DIM": 64,
    "MODEL.DETR.DIM_FEEDFORWARD": 64,
    "MODEL.DETR.ENC_LAYERS": 1,
    "MODEL.DETR.DEC_LAYERS": 1,
    "MODEL.DETR.NUM_OBJECT_QUERIES": 10,
    "INPUT.MIN_SIZE_TEST": 96,
}
FORMATS = ["original", "training", "wrapper", "transformers", "safetensors", "detectron2", "module"]


def small_config(**settings):
    opts = {**SMALL, **{key.replace("__", "."): value for key, value in settings.items()}}
    return config("detr_R_50", *[text for pair in opts.items() for text in pair])


@pytest.fixture(scope="module")
def original():
    return small_original()


@pytest.fixture(scope="module")
def paths(original, tmp_path_factory):
    """The same model in every format."""
    root = tmp_path_factory.mktemp("formats")
    ours = to_detectron2(original).state
    contents = {
        "original": {"model": original},
        "training": {
            "model": original,
            "args": argparse.Namespace(lr=1e-4, dilation=False, nheads=8),
            "epoch": 299,
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        },
        "wrapper": {"model": as_wrapper(original)},
        "detectron2": {"model": ours, "iteration": 7},
        "module": {f"module.{key}": value for key, value in original.items()},
    }
    for name, content in contents.items():
        torch.save(content, root / f"{name}.pth")
    found = {name: str(root / f"{name}.pth") for name in contents}
    convert(Request(found["original"], str(root / "transformers"), to="transformers"))
    return {
        **found,
        "transformers": str(root / "transformers"),
        "safetensors": str(root / "transformers" / "model.safetensors"),
    }


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected(original, image):
    """What the model predicts with weights loaded by hand."""
    cfg = small_config(MODEL__WEIGHTS="")
    predictor = DefaultPredictor(cfg)
    predictor.model.load_state_dict(to_detectron2(original).state)
    return predictor(image)["instances"]


@pytest.mark.parametrize("name", FORMATS)
def test_detectron2s_own_predictor_takes_every_format(name, paths, image, expected):
    found = DefaultPredictor(small_config(MODEL__WEIGHTS=paths[name]))(image)["instances"]
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_classes, expected.pred_classes)


@pytest.mark.parametrize("name", FORMATS)
def test_a_load_is_logged_in_a_few_lines(name, paths, caplog):
    model = build_model(small_config())
    with caplog.at_level(logging.INFO):
        DetrCheckpointer(model).load(paths[name])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) < 8
    assert sum(" tensors" in line and paths[name] in line for line in lines) == 1
    total = len(model.state_dict())
    assert f"loaded {total} of the model's {total} tensors" in lines
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_only_weights_are_taken_from_another_programs_training(paths, caplog):
    caplog.set_level(logging.INFO)
    assert DetrCheckpointer(build_model(small_config())).load(paths["training"]) == {}
    assert "left out: args, epoch, optimizer, which are of another program's training" in caplog.text
    assert DetrCheckpointer(build_model(small_config())).load(paths["detectron2"]) == {"iteration": 7}


def test_other_models_keep_detectron2s_checkpointer():
    assert type(DetectionCheckpointer(nn.Linear(2, 2))) is DetectionCheckpointer
    assert type(DetectionCheckpointer(build_model(small_config()))) is DetrCheckpointer
    assert type(DetectionCheckpointer(nn.DataParallel(build_model(small_config())))) is DetrCheckpointer

    class Own(DetectionCheckpointer):
        pass

    assert type(Own(build_model(small_config()))) is Own


def warnings_of(caplog, cfg, path):
    caplog.clear()
    model = build_model(cfg)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    DetrCheckpointer(model).load(path)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return lines, before, model.state_dict()


def test_other_classes_and_queries_keep_what_fits(paths, original, caplog):
    cfg = small_config(MODEL__DETR__NUM_CLASSES=3, MODEL__DETR__NUM_OBJECT_QUERIES=12)
    lines, before, after = warnings_of(caplog, cfg, paths["original"])
    assert lines == [
        "class_embed: 81 rows in the weights, 4 wanted: no-object is kept, the others are re-initialized",
        "query_embed: 10 queries in the weights, 12 wanted: 2 more are initialized",
    ]
    assert torch.equal(after["class_embed.weight"][3], original["class_embed.weight"][91])
    assert torch.equal(after["class_embed.weight"][:3], before["class_embed.weight"][:3])
    assert torch.equal(after["query_embed.weight"][:10], original["query_embed.weight"])
    assert torch.equal(after["query_embed.weight"][10:], before["query_embed.weight"][10:])


def test_boxes_load_into_a_model_with_masks(paths, caplog):
    lines, before, after = warnings_of(caplog, small_config(MODEL__MASK_ON=True), paths["original"])
    heads = [key for key in before if key.startswith("mask_head.")]
    assert lines == [f"mask_head is re-initialized: the weights hold none of its {len(heads)} tensors"]
    assert all(torch.equal(before[key], after[key]) for key in heads)


def test_masks_load_into_a_model_of_boxes(paths, original, tmp_path, caplog):
    path = str(tmp_path / "masks.pth")
    masks = {"mask_head.lay1.bias": torch.ones(72), "bbox_attention.q_linear.bias": torch.ones(64)}
    torch.save({"model": {**{f"detr.{key}": value for key, value in original.items()}, **masks}}, path)
    lines, _, after = warnings_of(caplog, small_config(), path)
    assert lines == [
        "mask_head: 2 tensors of the weights are not in this model: mask_head.lay1.bias, "
        "mask_head.attention.q_linear.bias"
    ]
    assert torch.equal(after["query_embed.weight"], original["query_embed.weight"])


def test_weights_for_other_settings_are_warned_of(original, tmp_path, caplog):
    path = str(tmp_path / "dc5.pth")
    torch.save({"model": original, "args": argparse.Namespace(dilation=True, nheads=4)}, path)
    lines, _, _ = warnings_of(caplog, small_config(), path)
    assert [line for line in lines if "model with DC5" in line and line.endswith("RES5_DILATION 2")]
    assert [line for line in lines if "4 attention heads and the model has 8" in line]
    lines, _, _ = warnings_of(caplog, small_config(MODEL__RESNETS__RES5_DILATION=2, MODEL__DETR__NHEADS=4), path)
    assert lines == []


PRE_NORM = {"transformer.encoder.norm.weight": torch.ones(64)}


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        (
            {"MODEL__DETR__HIDDEN_DIM": 128},
            lambda state: state,
            r"tensors of the weights have other shapes than the model's.*HIDDEN_DIM",
        ),
        ({"MODEL__DETR__PRE_NORM": True}, lambda state: state, r"set MODEL\.DETR\.PRE_NORM False"),
        ({}, lambda state: state | PRE_NORM, r"set MODEL\.DETR\.PRE_NORM True"),
        (
            {},
            lambda state: state | {"module.query_embed.weight": torch.zeros(10, 64)},
            r"1 key is not .*the first: module\.query_embed\.weight",
        ),
        ({}, lambda state: {"head.weight": torch.ones(2)}, r"for this model: their first keys are head\.weight"),
    ],
    ids=["width", "pre-norm model", "pre-norm weights", "prefix of some keys", "another model"],
)
def test_weights_of_another_model_are_refused(original, tmp_path, settings, change, message):
    path = str(tmp_path / "weights.pth")
    torch.save({"model": change(original)}, path)
    with pytest.raises(InputError, match=message):
        DetrCheckpointer(build_model(small_config(**settings))).load(path)


def test_own_checkpoints_record_what_tensors_do_not_show(tmp_path, caplog):
    model = build_model(small_config(MODEL__DETR__NHEADS=4, MODEL__RESNETS__RES5_DILATION=2))
    DetrCheckpointer(model, str(tmp_path)).save("model", iteration=3)
    info = read(str(tmp_path / "model.pth")).info
    assert (info.dilation, info.heads) == (True, 4)
    lines, _, _ = warnings_of(caplog, small_config(), str(tmp_path / "model.pth"))
    assert len(lines) == 2


def test_another_depth_is_reported_by_module(paths, caplog):
    lines, _, _ = warnings_of(caplog, small_config(MODEL__DETR__ENC_LAYERS=2), paths["original"])
    assert len(lines) == 1
    assert lines[0].startswith("transformer.encoder: 12 of its 24 tensors are re-initialized: transformer.encoder.la")


def test_a_checkpointer_goes_on_after_a_failure(paths, tmp_path):
    checkpointer = DetrCheckpointer(build_model(small_config()))
    with pytest.raises(InputError):
        checkpointer.load(str(tmp_path))
    with pytest.raises(InputError):
        checkpointer.load(__file__)
    assert checkpointer.load(paths["detectron2"]) == {"iteration": 7}


def resnet_state():
    resnet = torchvision.models.resnet50(weights=None)
    for buffer in resnet.buffers():
        buffer.add_(torch.rand(()).to(buffer.dtype))
    return resnet, resnet.state_dict()


def save_resnet(state, folder, suffix):
    """As torchvision has it, or for "pkl" Detectron2's zoo: arrays, names without `backbone`, and the classifier."""
    path = str(folder / f"resnet50.{suffix}")
    if suffix == "pth":
        torch.save(state, path)
        return path
    ours = {key.removeprefix("backbone."): value.numpy() for key, value in to_detectron2(state).state.items()}
    ours |= {"stem.fc.weight": state["fc.weight"].numpy(), "stem.fc.bias": state["fc.bias"].numpy()}
    with open(path, "wb") as file:
        pickle.dump({"model": ours, "__author__": "torchvision", "matching_heuristics": True}, file)
    return path


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_resnet_becomes_the_backbone(suffix, tmp_path, caplog):
    resnet, state = resnet_state()
    path = save_resnet(state, tmp_path, suffix)
    model = build_model(small_config()).eval()
    before = model.query_embed.weight.clone()
    DetrCheckpointer(model).load(path)
    assert torch.equal(model.query_embed.weight, before)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        body = nn.Sequential(*list(resnet.eval().children())[:-2])
        torch.testing.assert_close(model.backbone(image)["res5"], body(image), rtol=1e-3, atol=1e-4)
    initialized = [record.getMessage() for record in caplog.records if "is re-initialized" in record.getMessage()]
    assert len(initialized) == 6  # input_proj, encoder, decoder, query_embed, class_embed, bbox_embed


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_a_resnet_is_found_inside_a_pyramid(suffix, tmp_path):
    _, state = resnet_state()
    path = save_resnet(state, tmp_path, suffix)
    cfg = small_config(MODEL__BACKBONE__NAME="build_resnet_fpn_backbone", MODEL__DETR__IN_FEATURE="p5")
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    model = build_model(cfg)
    DetrCheckpointer(model).load(path)
    assert torch.equal(model.backbone.bottom_up.res4[5].conv2.weight, state["layer3.5.conv2.weight"])


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl", "evil.pyth", "folder"])
def test_a_malicious_file_is_not_run_by_the_predictor(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as people set it for old files
    target, path = tmp_path / "created", tmp_path / name
    content = {"model": {"backbone.stem.conv1.weight": Mkdir(str(target))}}
    if name == "folder":
        path.mkdir()
        torch.save(content["model"], path / "pytorch_model.bin")
    elif name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({**content, "__author__": "someone"}))
    else:
        torch.save({"model_state": content["model"], **content}, path)
    with pytest.raises(InputError, match=r"asks for the class posix\.mkdir"):
        DefaultPredictor(small_config(MODEL__WEIGHTS=str(path)))
    assert not target.exists()
