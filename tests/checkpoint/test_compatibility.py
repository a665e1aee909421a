"""Weights of other models and programs: refused with what to do, and hints that lead to a whole model."""

import re

import pytest
import torch
import torchvision
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.modeling.backbone.regnet import RegNet, ResBottleneckBlock, SimpleStem
from torch import nn

import converter
from detr import Detr
from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.formats import to_detectron2
from detr.errors import InputError
from detr.modeling.transformer import MLP
from tests.checkpoint.samples import small_original
from tests.checkpoint.test_checkpointer import small_config


@pytest.fixture(scope="module")
def original():
    return small_original()


@pytest.fixture(scope="module")
def model():
    """Its weights never matter: every load into it is refused, or replaces them."""
    return build_model(small_config())


class Demo(nn.Module):
    """The model of the authors' notebook: torch's transformer on a ResNet."""

    def __init__(self):
        super().__init__()
        self.backbone = torchvision.models.resnet50(weights=None)
        del self.backbone.fc
        self.conv = nn.Conv2d(2048, 64, 1)
        layer = {"batch_first": True, "dim_feedforward": 64}
        self.transformer = nn.Transformer(64, 8, 1, 1, **layer)
        self.linear_class, self.linear_bbox = nn.Linear(64, 92), nn.Linear(64, 4)
        self.query_pos = nn.Parameter(torch.rand(10, 64))
        self.row_embed, self.col_embed = nn.Parameter(torch.rand(50, 32)), nn.Parameter(torch.rand(50, 32))


def refused(model, path, message, options=""):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        DetrCheckpointer(model).load(f"{path}{options}")
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(error.value)


def save(state, tmp_path):
    torch.save({"model": state}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_demo_model_of_the_notebook_is_recognized(prefix, model, tmp_path):
    path = save({f"{prefix}{key}": value for key, value in Demo().state_dict().items()}, tmp_path)
    message = refused(model, path, "the demo model in the authors' notebook, .* detr://detr_R_50")
    assert "PRE_NORM" not in message
    with pytest.raises(InputError, match="the demo model"):
        converter.main(["--source_model", path, "--output_model", str(tmp_path / "out.pth")])


def deformable(state):
    """Names of Deformable DETR: the original's, with other attention and a head for each layer."""
    found = {}
    for key, value in state.items():
        if "encoder.layers" in key and "self_attn" in key:
            found[key.replace("in_proj_weight", "value_proj.weight").replace("in_proj_bias", "value_proj.bias")] = value
            found[re.sub(r"self_attn\..+", "self_attn.sampling_offsets.weight", key)] = torch.ones(2)
        else:
            found[re.sub(r"^(class_embed|bbox_embed)\.", r"\1.0.", key)] = value
    return found | {f"transformer.level_embed.{i}": torch.ones(2) for i in range(60)}


def detrex(state):
    """Detectron2's backbone, and a transformer whose layers are lists."""
    ours = to_detectron2(state).state
    names = {"self_attn": "attentions.0.attn", "multihead_attn": "attentions.1.attn", "linear1": "ffns.0.layers.0.0",
             "linear2": "ffns.0.layers.1", "norm1": "norms.0", "norm2": "norms.1", "norm3": "norms.2"}  # fmt: skip
    return {
        ".".join(names.get(part, part) for part in key.split("."))
        if "layers" in key and "transformer" in key
        else key: value
        for key, value in ours.items()
    }


def conditional(state):
    """Conditional DETR: the original's names, but for the decoder's attention."""
    return {
        re.sub(r"(decoder\..*)(self|multihead)_attn\.in_proj", r"\1\2_qcontent_proj", k): v for k, v in state.items()
    }


def yolo(state):
    return {f"model.{i}.conv.weight": torch.ones(1) for i in range(80)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (deformable, "in no format that is known here: .* of the kind original detection, but .* another architecture"),
        (
            detrex,
            r"hold 0 of the \d+ tensors of transformer\.encoder \(and .*attentions\.0\.attn\S+\), .*\?partial=True",
        ),
        (conditional, r"4 keys are not of the kind original detection; .*decoder\.layers\.0\.self_qcontent_proj"),
        (yolo, r"in no format that is known here and hold nothing for this model: their first keys are model\.0\.conv"),
    ],
)
def test_other_architectures_are_in_no_known_format(change, message, original, model, tmp_path):
    message = refused(model, save(change(original), tmp_path), message)
    assert "MODEL." not in message


def test_a_few_chance_matches_are_not_loaded(original, model, tmp_path):
    ours = to_detectron2(original).state
    few = {key: ours[key] for key in list(ours)[:3]} | {f"net.{i}": torch.ones(1) for i in range(4)}
    refused(model, save(few, tmp_path), "hold only 3 of their 7 tensors for this model")


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"MODEL__DETR__HIDDEN_DIM": 128}, "set MODEL.DETR.HIDDEN_DIM 64"),
        ({"MODEL__DETR__DIM_FEEDFORWARD": 128}, "set MODEL.DETR.DIM_FEEDFORWARD 64"),
        (
            {"MODEL__RESNETS__DEPTH": 18, "MODEL__RESNETS__RES2_OUT_CHANNELS": 64},
            "set MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.RES2_OUT_CHANNELS 256",
        ),
        ({"MODEL__RESNETS__DEPTH": 101}, "set MODEL.RESNETS.DEPTH 50"),
        (
            {"MODEL__DETR__PRE_NORM": True, "MODEL__DETR__DIM_FEEDFORWARD": 128},
            "set MODEL.DETR.PRE_NORM False MODEL.DETR.DIM_FEEDFORWARD 64",
        ),
    ],
    ids=str,
)
def test_a_hint_leads_to_a_whole_model(settings, hint, original, model, tmp_path):
    path = save(original, tmp_path)
    other = build_model(small_config(**settings))
    assert hint in refused(other, path, "set ")
    pairs = hint.removeprefix("set ").split()
    fixed = {**settings, **{key.replace(".", "__"): value for key, value in zip(pairs[::2], pairs[1::2], strict=True)}}
    checkpointer = DetrCheckpointer(build_model(small_config(**fixed)))
    checkpointer.load(path)
    assert checkpointer.reinitialized == []


def test_there_is_no_hint_that_would_lead_astray(original, tmp_path):
    """Not for weights that lack tensors, and not for shapes that no key explains."""
    lacking = {key: value for key, value in original.items() if key != "transformer.decoder.layers.0.linear1.bias"}
    other = build_model(small_config(MODEL__DETR__PRE_NORM=True))
    message = refused(other, save(lacking, tmp_path), "post-norm .* name weights that belong to this config")
    assert "MODEL." not in message
    odd = original | {"transformer.decoder.layers.0.linear2.weight": torch.ones(64, 65)}
    assert "MODEL." not in refused(
        build_model(small_config()), save(odd, tmp_path), "1 tensors .* belong to this config"
    )


@pytest.mark.parametrize("suffix", [".pth", " in Detectron2's names"])
def test_a_backbone_of_another_depth_is_refused(suffix, tmp_path):
    state = torchvision.models.resnet50(weights=None).state_dict()
    if suffix != ".pth":
        state = to_detectron2(state).state
    path = save(state, tmp_path)
    other = build_model(small_config(MODEL__RESNETS__DEPTH=101))
    refused(
        other,
        path,
        r"hold 42 of the \d+ tensors of backbone\.res4|hold \d+ of the \d+ tensors of backbone\.res4.*DEPTH 50",
    )
    checkpointer = DetrCheckpointer(other)
    checkpointer.load(f"{path}?partial=True")
    assert any(line.startswith("backbone: ") for line in checkpointer.reinitialized)
    assert torch.equal(other.backbone.stem.conv1.weight, state[next(iter(state))])


def test_more_layers_are_no_mistake(original, tmp_path):
    """6 -> 7: most of the part is there."""
    state = to_detectron2(original).state
    layer = {key: value for key, value in state.items() if ".encoder.layers.0." in key}
    state |= {key.replace("layers.0", f"layers.{i}"): value for i in range(1, 6) for key, value in layer.items()}
    checkpointer = DetrCheckpointer(build_model(small_config(MODEL__DETR__ENC_LAYERS=7)))
    checkpointer.load(save(state, tmp_path))
    (line,) = checkpointer.reinitialized
    assert line.startswith("transformer.encoder: 12 of its 84 tensors are re-initialized")
    fourteen = build_model(small_config(MODEL__DETR__ENC_LAYERS=14))
    refused(
        fourteen,
        save(state, tmp_path),
        r"72 of the 168 tensors of transformer\.encoder.* set MODEL\.DETR\.ENC_LAYERS 6, or",
    )


def regnet():
    """Detectron2's: its stem has the name of the ResNet's, and other tensors."""
    return RegNet(
        stem_class=SimpleStem, stem_width=8, block_class=ResBottleneckBlock, depth=4, w_a=8.0, w_0=8, w_m=2.0,
        group_width=8,
    )  # fmt: skip


class Stem(nn.Module):
    """A backbone whose stem even has a tensor of the ResNet's shape."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, bias=False))
        self.stages = nn.Linear(2, 2)


@pytest.mark.parametrize("backbone", [regnet, Stem])
def test_another_backbone_is_reinitialized(backbone, original, tmp_path):
    model = build_model(small_config())
    model.backbone = backbone()
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(save(original, tmp_path))
    total = sum(not key.endswith("num_batches_tracked") for key in model.backbone.state_dict())
    assert checkpointer.reinitialized == [f"backbone is re-initialized: the weights hold none of its {total} tensors"]


class Blocks(nn.Module):
    """A transformer of the user's own, whose encoder is another one."""

    def __init__(self, decoder):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64))
        self.decoder = decoder


def test_another_encoder_is_reinitialized(original, tmp_path):
    model = build_model(small_config())
    model.transformer = Blocks(model.transformer.decoder)
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(save(original, tmp_path))
    (line,) = checkpointer.reinitialized
    assert line == "transformer.encoder is re-initialized: the weights hold none of its 4 tensors"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_renamed_encoder_alone_is_refused(layers, original, tmp_path):
    """Of as many layers as the model or of more."""
    state = to_detectron2(original).state
    encoder = {key: value for key, value in state.items() if key.startswith("transformer.encoder.")}
    state = {key: value for key, value in state.items() if key not in encoder}
    state |= {key.replace("s.0", f"s.{i}.block"): value for i in range(layers) for key, value in encoder.items()}
    refused(
        build_model(small_config()), save(state, tmp_path), r"hold 0 of the 12 tensors of transformer\.encoder \(and"
    )


@META_ARCH_REGISTRY.register()
class DetrWithOtherHeads(Detr):
    """A class head of two layers, and one more head."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.class_embed = MLP(64, 64, 81, num_layers=2)
        self.depth = nn.Linear(64, 1)


@META_ARCH_REGISTRY.register()
class DetrWithOtherNames(Detr):
    """Not even the queries have their usual name."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.queries, self.head = self.query_embed, self.class_embed
        del self.query_embed, self.class_embed


@pytest.mark.parametrize("name", ["DetrWithOtherHeads", "DetrWithOtherNames"])
def test_subclasses_load_their_own_checkpoints_and_others(name, original, tmp_path, caplog):
    cfg = small_config(MODEL__META_ARCHITECTURE=name)
    trained, fresh = build_model(cfg), build_model(cfg)
    DetrCheckpointer(trained, str(tmp_path)).save("own")
    checkpointer = DetrCheckpointer(fresh)
    checkpointer.load(str(tmp_path / "own.pth"))
    assert checkpointer.reinitialized == []
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in fresh.state_dict().items())
    checkpointer.load(save(original, tmp_path))
    assert checkpointer.reinitialized  # the heads
    DetrCheckpointer(build_model(small_config())).load(str(tmp_path / "own.pth"))
