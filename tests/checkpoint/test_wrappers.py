"""Weights inside other things: prefixes, nested dicts, wrappers in the middle of names, and averages beside them."""

import logging
import os
import re

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

import converter
from detr.checkpoint import DetrCheckpointer, formats
from detr.checkpoint.files import load_file
from detr.checkpoint.formats import from_detectron2, to_detectron2
from detr.checkpoint.source import source_of
from detr.checkpoint.wrappers import unwrapped_names
from detr.engine.defaults import check_weights, load_config, start_from_frozen_weights
from detr.errors import InputError
from tests.checkpoint.samples import as_wrapper, small_original
from tests.conftest import QUICKSTART, as_opts


@pytest.fixture(scope="module")
def original():
    return small_original()


@pytest.fixture(scope="module")
def average(original):
    return {key: value + 1 for key, value in original.items()}


def below(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def inside(state, *parts):
    """The state dict with a wrapper's name behind each of the parts."""
    for part in parts:
        module, _, _ = part.rpartition("._")
        state = {re.sub(rf"^{re.escape(module)}\.", f"{part}.", key): value for key, value in state.items()}
    return state


# What is left out of the checkpoint of a training with queries of its own.
OF_A_TRAINING = {
    "training_queries.anchors": torch.ones(20, 4),
    "training_queries.label_embed.weight": torch.ones(80, 64),
}
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
WRAPPED = {
    "compiled": lambda state: {"model": below("_orig_mod.", state)},
    "compiled part": lambda state: {"model": inside(state, "backbone._orig_mod", "transformer.encoder._orig_mod")},
    "parallel": lambda state: below("module.", state),
    "parallel and compiled": lambda state: {"model": below("module._orig_mod.", state)},
    "fully sharded": lambda state: below("_fsdp_wrapped_module.", inside(state, "transformer._fsdp_wrapped_module")),
    "checkpointed": lambda state: inside(state, "transformer.decoder.layers.0._checkpoint_wrapped_module"),
    "lightning": lambda state: {
        "epoch": 3,
        "state_dict": below("model.", state) | {"criterion.empty_weight": torch.ones(3), "map.total": torch.zeros(1)},
        "optimizer_states": [OPTIMIZER],
    },
    "lightning, named detr": lambda state: {"state_dict": below("detr.", state) | {"map.total": torch.zeros(1)}},
    "lightning, compiled": lambda state: {"state_dict": below("net.detector._orig_mod.", state)},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": OPTIMIZER, "loss": 0.5},
    "nested": lambda state: {"checkpoint": {"net": {"weights": state}}, "optimizer": OPTIMIZER},
    "only an average": lambda state: {"ema": {"module": state, "decay": 0.99}},
    "averaged model": lambda state: below("module.", state) | {"n_averaged": torch.tensor(5)},
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("kind", ["original", "transformers", "detectron2", "wrapper", "training"])
def test_weights_are_found_in_every_format(name, kind, original):
    ours = to_detectron2(original).state
    state = {
        "original": original,
        "transformers": from_detectron2(ours, formats.TRANSFORMERS_RESNET).state,
        "detectron2": ours,
        "wrapper": {key: value for key, value in as_wrapper(original).items() if not key.startswith("criterion.")},
        "training": ours | OF_A_TRAINING,
    }[kind]
    source = source_of("weights.pth", WRAPPED[name](state))
    found = source.to_detectron2().state
    assert found.keys() == ours.keys()
    assert all(torch.equal(value, ours[key]) for key, value in found.items())


def test_what_is_left_out_is_listed(original):
    source = source_of("weights.pth", WRAPPED["lightning"](original))
    assert source.lines == ["left out: 2 keys like criterion.empty_weight (beside the weights)"]
    assert source.rest.keys() == {"epoch", "optimizer_states"}
    assert source_of("weights.pth", {"model": original}).lines == []


def test_only_a_module_alone_in_another_is_a_wrapper():
    names = ["a._b.weight", "c._d.weight", "c.e.weight", "_f.weight", "g._h._i.bias", "g._h._i._extra"]
    assert list(unwrapped_names(names).values()) == [
        *("a.weight", "c._d.weight", "c.e.weight", "_f.weight", "g.bias", "g._extra"),
    ]
    assert unwrapped_names(["_a._b", "_a.c._b"]) == {"_a._b": "_b", "_a.c._b": "c._b"}
    assert unwrapped_names(["a._b.c.d", "a.c.d"]) == {"a._b.c.d": "a._b.c.d", "a.c.d": "a.c.d"}


BOTH = {  # weights and average -> content, the name of the average, and that of the weights
    "ema": (lambda w, a: {"model": w, "ema": a}, "ema", "model"),
    "module": (lambda w, a: {"model": w, "ema": {"module": a, "updates": 5}}, "ema.module", "model"),
    "model_ema": (lambda w, a: {"model": w, "model_ema": a, "optimizer": OPTIMIZER}, "model_ema", "model"),
    "timm": (lambda w, a: {"state_dict": w, "state_dict_ema": a}, "state_dict_ema", "state_dict"),
    "flat": (
        lambda w, a: {"state_dict": below("online_model.", w) | below("ema_model.", a)},
        "state_dict.ema_model",
        "state_dict.online_model",
    ),
    "below": (lambda w, a: w | below("ema.", a), "ema", "top-level"),
    "lightning": (
        lambda w, a: {"state_dict": below("model.", w), "callbacks": {"EMACallback": {"weights": below("model.", a)}}},
        "callbacks.EMACallback.weights.model",
        "state_dict.model",
    ),
    "swa": (lambda w, a: {"model": w, "swa_state_dict": below("module.", a)}, "swa_state_dict.module", "model"),
    "averaged": (
        lambda w, a: {"net": w, "second": below("module.", a) | {"n_averaged": torch.tensor(2)}},
        "second.module",
        "net",
    ),
    "mmengine": (
        lambda w, a: {"meta": {}, "message_hub": {}, "state_dict": a,
                      "ema_state_dict": below("module.", w) | {"steps": torch.tensor(4)}},
        "state_dict",
        "ema_state_dict.module",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("wrap", "ema", "model"), BOTH.values(), ids=BOTH)
def test_an_average_is_taken_unless_the_weights_are_asked_for(wrap, ema, model, original, average):
    content = wrap(original, average)
    for choice, expected, name in ((None, average, ema), ("ema", average, ema), ("model", original, model)):
        source = source_of("weights.pth", content, choice)
        assert source.state.keys() == original.keys()
        assert torch.equal(source.state["query_embed.weight"], expected["query_embed.weight"])
        assert f"{name} is taken" in source.lines[0]
        assert ema in source.lines[0]
        assert model in source.lines[0]


@pytest.mark.parametrize(
    ("content", "choice", "message"),
    [
        (lambda w, a: {"model": w}, "ema", r"has no EMA: it holds model; name one of these, or leave weights=ema o"),
        (lambda w, a: {"ema": a}, "model", "has no weights 'model': it holds ema"),
        (lambda w, a: {"first": w, "second": a}, None, r"holds several models, first, second, .* \?weights=second"),
        (lambda w, a: {"first": w, "second": a}, "ema", "has no EMA: it holds first, second"),
        (lambda w, a: {"model": w, "ema_1": a, "ema_2": a}, None, r"several models, model, ema_1, .*\?weights=ema_2"),
        (lambda w, a: {"head.weight": torch.ones(1)}, "ema", r"weights=ema cannot be chosen"),
    ],
)  # fmt: skip
def test_a_choice_that_is_not_clear(content, choice, message, original, average):
    with pytest.raises(InputError, match=message):
        source_of("w.pth", content(original, average), choice)


def test_one_of_several_is_taken_by_its_name(original, average):
    content = {"first": original, "second": average, "model": average}
    assert source_of("w.pth", content, "first").state["query_embed.weight"] is original["query_embed.weight"]
    assert source_of("w.pth", content, "model").state["query_embed.weight"] is average["query_embed.weight"]


def test_a_backbone_counts_where_it_is_alone(original):
    resnet = torchvision.models.resnet18(weights=None).state_dict()
    source = source_of("w.pth", {"state_dict": below("module.", resnet), "optimizer": OPTIMIZER})
    assert source.format is formats.TORCHVISION
    assert source_of("w.pth", {"model": original, "teacher": resnet}).format is formats.ORIGINAL
    queue = {"state_dict": below("module.encoder.", resnet) | {"module.queue": torch.ones(2)}}
    assert source_of("w.pth", queue).format is None


@pytest.fixture
def paths(tiny_config, tmp_path):
    """A file with weights and their average, and a model to load them into."""
    model = build_model(tiny_config())
    state = model.state_dict()
    averages = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model": state, "model_ema": averages}, tmp_path / "both.pth")
    return str(tmp_path / "both.pth"), state["query_embed.weight"].clone(), model


@pytest.mark.parametrize(("options", "shift"), [("", 1), ("?weights=ema", 1), ("?weights=model", 0),
                                                ("?weights=model&matching_heuristics=True", 0)])  # fmt: skip
def test_a_path_says_which_weights(options, shift, paths, caplog):
    path, before, model = paths
    caplog.set_level(logging.INFO)
    DetrCheckpointer(model).load(path + options)
    torch.testing.assert_close(model.query_embed.weight.detach(), before + shift)
    name = "model_ema" if shift else "model"
    assert f"the file holds model, model_ema: {name} is taken" in caplog.text
    assert f"?weights={'model' if shift else 'ema'} behind the path takes another" in caplog.text


def test_other_models_have_no_choice_of_weights(paths):
    with pytest.raises(InputError, match=r"\?weights=ema is for weights of a Detr"):
        DetrCheckpointer(nn.Linear(2, 2)).load(f"{paths[0]}?weights=ema")


def test_a_path_with_options_is_checked_before_the_model_is_built(paths, tmp_path):
    path, _, _ = paths
    check_weights(f"{path}?weights=ema")
    check_weights("detr://detr_R_50?weights=model")
    with pytest.raises(InputError, match=r"there is no file or folder gone\.pth"):
        check_weights("gone.pth?weights=ema")
    with pytest.raises(InputError, match=r"both\.pth\?weight=ema: weight=ema behind the \? is no option; there are w"):
        check_weights(f"{path}?weight=ema")
    with pytest.raises(InputError, match="matching_heuristics=yes behind the"):
        check_weights(f"{path}?matching_heuristics=yes")
    cfg = load_config(
        str(QUICKSTART), as_opts({"MODEL.MASK_ON": True, "MODEL.DETR.FROZEN_WEIGHTS": f"{path}?weights=ema"})
    )
    start_from_frozen_weights(cfg)
    assert f"{path}?weights=ema" == cfg.MODEL.WEIGHTS
    os.rename(path, tmp_path / "odd?name.pth")
    check_weights(str(tmp_path / "odd?name.pth"))
    with pytest.raises(InputError, match=r"odd\?name\.pth has a \? in its name, .* rename the file"):
        DetrCheckpointer(nn.Linear(2, 2)).load(str(tmp_path / "odd?name.pth"))


def test_a_resumed_training_goes_on_with_its_weights(paths, tiny_config, tmp_path):
    path, before, model = paths
    (tmp_path / "last_checkpoint").write_text("both.pth")
    content = torch.load(path, weights_only=True)
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({**content, "optimizer": optimizer.state_dict()}, path)
    DetrCheckpointer(model, str(tmp_path), optimizer=optimizer).resume_or_load("", resume=True)
    assert torch.equal(model.query_embed.weight, before)


def test_the_converter_takes_what_it_is_asked_for(original, average, tmp_path, capsys):
    path = str(tmp_path / "both.pth")
    torch.save({"model": original, "ema": average}, path)
    for i, (source, options, expected) in enumerate(
        ((path, [], average), (path, ["--weights", "model"], original), (f"{path}?weights=model", [], original))
    ):
        output = str(tmp_path / f"{i}.pth")
        converter.main(["--source_model", source, "--output_model", output, *options])
        found = load_file(output)["model"]["query_embed.weight"]
        assert torch.equal(found, expected["query_embed.weight"])
        assert "the file holds model, ema: " in capsys.readouterr().out


def test_models_with_wrapped_parts_load_each_others_weights(tiny_config, tmp_path):
    """A part may be compiled where it is saved, where it is loaded, in both or in neither."""
    plain, compiled = build_model(tiny_config()), build_model(tiny_config())
    compiled.backbone = torch.compile(compiled.backbone)
    for a, b in ((plain, compiled), (compiled, plain), (compiled, compiled)):
        with torch.no_grad():
            a.backbone.stem.conv1.weight.normal_()
            a.query_embed.weight.normal_()
        expected = a.backbone.stem.conv1.weight.clone()
        DetrCheckpointer(a, str(tmp_path)).save("model")
        with torch.no_grad():
            b.backbone.stem.conv1.weight.zero_()
        checkpointer = DetrCheckpointer(b)
        checkpointer.load(str(tmp_path / "model.pth"))
        assert torch.equal(b.backbone.stem.conv1.weight, expected)
        assert checkpointer.reinitialized == []


def test_a_compiled_model_is_saved_and_loaded_as_the_model_inside(tiny_config, tmp_path):
    model = build_model(tiny_config())
    checkpointer = DetectionCheckpointer(torch.compile(nn.DataParallel(model)), str(tmp_path))
    assert type(checkpointer) is DetrCheckpointer
    checkpointer.save("model")
    assert load_file(str(tmp_path / "model.pth"))["model"].keys() == model.state_dict().keys()
    averaged = AveragedModel(torch.compile(model))
    torch.save(averaged.state_dict(), tmp_path / "averaged.pth")
    with torch.no_grad():
        model.query_embed.weight.zero_()
    checkpointer.load(str(tmp_path / "averaged.pth"))
    assert checkpointer.reinitialized == []
    assert model.query_embed.weight.any()
