"""Folded ResNets compute what Detectron2's do, whichever way they take."""

import copy
import io

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from detr.modeling import folded_resnet
from detr.modeling.folded_resnet import FoldedBottleneck, FoldedConv, FoldedStage, checkpoint_blocks, fold_frozen_norms

ALL = ("stem", "res2", "res3", "res4", "res5")


def plain_resnet(tiny_config, depth=50, norm="FrozenBN", features=ALL, **settings):
    """Detectron2's own, in a tenth of its width, with norms that do something."""
    cfg = tiny_config(
        {
            "MODEL.BACKBONE.NAME": "build_resnet_backbone",
            "MODEL.RESNETS.DEPTH": depth,
            "MODEL.RESNETS.NORM": norm,
            "MODEL.RESNETS.WIDTH_PER_GROUP": 8 if depth >= 50 else 64,
            "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 64,
            "MODEL.RESNETS.OUT_FEATURES": features,
            "MODEL.BACKBONE.FREEZE_AT": 2,
            **settings,
        }
    )
    torch.manual_seed(0)
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return backbone


def folded(backbone):
    backbone = copy.deepcopy(backbone)
    fold_frozen_norms(backbone)
    return backbone


def image(n=2, dtype=torch.float32):
    return torch.randn(n, 3, 65, 97, generator=torch.Generator().manual_seed(1)).to(dtype)


def fused_calls(monkeypatch):
    """The convolutions that oneDNN was asked for, from here on."""
    calls = []
    for name in ("_convolve", "_add"):
        original = getattr(folded_resnet, name)
        monkeypatch.setattr(folded_resnet, name, lambda *a, f=original, **k: (calls.append(f), f(*a, **k))[1])
    return calls


def assert_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name in expected:
        error = (found[name].double() - expected[name].double()).abs().max() / expected[name].abs().max()
        assert error < tolerance, (name, error)


@pytest.mark.parametrize(
    ("depth", "settings"),
    [(18, {}), (50, {}), (50, {"MODEL.RESNETS.NUM_GROUPS": 4}), (50, {"MODEL.RESNETS.RES5_DILATION": 2})],
    ids=str,
)
@torch.no_grad()
def test_every_feature_is_that_of_the_plain_resnet(tiny_config, monkeypatch, depth, settings):
    """All of them at once: sums are written over maps that nobody else reads, and these must not be among them."""
    plain = plain_resnet(tiny_config, depth, **settings)
    calls = fused_calls(monkeypatch)
    assert_close(folded(plain)(image()), plain(image()))
    assert calls


@torch.no_grad()
def test_the_unfused_way_is_the_same(tiny_config, monkeypatch):
    plain = plain_resnet(tiny_config)
    resnet, calls = folded(plain).double(), fused_calls(monkeypatch)
    assert_close(resnet(image(dtype=torch.float64)), plain.double()(image(dtype=torch.float64)), 1e-12)
    assert not calls  # oneDNN knows no double precision


def test_gradients_are_those_of_the_plain_resnet(tiny_config):
    plain = plain_resnet(tiny_config, features=("res3", "res5")).double()
    resnet = folded(plain)
    for model in (plain, resnet):
        outputs = model(image(dtype=torch.float64))
        sum((x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)).sum() for x in outputs.values()).backward()
    trained = 0
    for (name, expected), found in zip(plain.named_parameters(), resnet.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None) == (not expected.requires_grad), name
        if expected.grad is not None:
            assert (found.grad - expected.grad).norm() < 1e-9 * expected.grad.norm(), name
            trained += 1
    assert trained == 42  # res3, res4 and res5 of a ResNet-50


def test_frozen_stages_are_fused_in_training_too(tiny_config, monkeypatch):
    resnet, calls = folded(plain_resnet(tiny_config)), fused_calls(monkeypatch)
    outputs = resnet.train()(image())
    assert [name for name, x in outputs.items() if not x.requires_grad] == ["stem", "res2"]
    assert len(calls) == 1 + 3 * 3  # the stem, and three blocks of three


def test_scaled_weights_are_not_kept_for_the_gradient(tiny_config):
    resnet = folded(plain_resnet(tiny_config))
    weights = {id(p.untyped_storage()): p for p in resnet.parameters()}
    pointers = {p.data_ptr() for p in resnet.parameters()}
    shapes = {tuple(p.shape) for p in weights.values() if p.requires_grad}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        resnet(image())
    of_weights = [x for x in kept if tuple(x.shape) in shapes]
    assert len(of_weights) == 42
    assert all(x.data_ptr() in pointers for x in of_weights)


@torch.no_grad()
def test_new_weights_and_statistics_count_at_once(tiny_config):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    before = resnet(image())["res5"]
    for module in plain.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.add_(0.1)
    plain.res4[0].conv2.weight.data.mul_(1.5)
    resnet.load_state_dict(plain.state_dict())
    assert_close(resnet(image()), plain(image()))
    assert not torch.allclose(before, resnet(image())["res5"], rtol=1e-2)


@torch.no_grad()
def test_changes_behind_torchs_back_count_too(tiny_config):
    """Averages of weights are written so, into a model that stays in evaluation; and pruning changes some filters."""
    plain = plain_resnet(tiny_config).eval()
    resnet = folded(plain)
    resnet(image())
    for model in (plain, resnet):
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.bias.data.add_(0.1)
        model.res4[1].conv2.weight.data[1:].mul_(1.5)
    assert_close(resnet(image()), plain(image()))


def test_a_training_follows_on_inference_mode(tiny_config):
    resnet = folded(plain_resnet(tiny_config)).eval()
    with torch.inference_mode():
        resnet(image())
    resnet.train()(image())["res5"].sum().backward()
    assert all(p.grad is not None for p in resnet.parameters() if p.requires_grad)


@torch.no_grad()
def test_blocks_leave_alone_what_somebody_else_holds(tiny_config):
    resnet = folded(plain_resnet(tiny_config))
    stem = resnet.stem(image())
    first = resnet.res2[0](stem)
    kept = stem.clone(), first.clone()
    resnet.res2[1](first)
    assert torch.equal(stem, kept[0])
    assert torch.equal(first, kept[1])


@torch.no_grad()
def test_hooks_on_all_modules_keep_what_they_are_shown(tiny_config):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    seen = {id(resnet): [], id(plain): []}
    notes = seen[id(plain)]
    keep = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: notes.append(output) if isinstance(output, torch.Tensor) else None
    )
    try:
        plain(image())
        notes = seen[id(resnet)]
        resnet(image())
    finally:
        keep.remove()
    for found, expected in zip(*seen.values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_hooks_see_what_they_would_see(tiny_config):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    names = ["res4.1", "res4.2.conv2", "res3.0.shortcut", "res2.1", "res3.1.conv2.norm"]
    seen = {id(model): {} for model in (plain, resnet)}
    for model in (plain, resnet):
        for name in names:
            notes = seen[id(model)]
            model.get_submodule(name).register_forward_hook(lambda *a, k=name, notes=notes: notes.update({k: a[2]}))
        model(image())
    # A convolution's output is overwritten by ReLU in both.
    assert_close(seen[id(resnet)], seen[id(plain)])


def test_checkpoints_and_copies_know_nothing_of_it(tiny_config):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    assert list(resnet.state_dict()) == list(plain.state_dict())
    file = io.BytesIO()
    torch.save(resnet, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert isinstance(again.res3[1], FoldedBottleneck)
    assert isinstance(again.res3, FoldedStage)
    with torch.no_grad():
        assert_close(again(image()), plain(image()))


def test_norms_that_learn_stay(tiny_config):
    resnet = folded(plain_resnet(tiny_config, norm="BN", **{"MODEL.BACKBONE.FREEZE_AT": 0}))
    assert not any(isinstance(module, FoldedConv) for module in resnet.modules())
    assert not checkpoint_blocks(resnet)


@torch.no_grad()
def test_a_traced_resnet_has_torchs_operators_alone(tiny_config):
    plain = plain_resnet(tiny_config)
    traced = torch.jit.trace(folded(plain), image(), strict=False)
    assert "mkldnn" not in str(traced.inlined_graph)
    assert_close(traced(image()), plain(image()))


@torch.no_grad()
def test_mixed_precision(tiny_config, monkeypatch):
    plain = plain_resnet(tiny_config)
    resnet, calls = folded(plain), fused_calls(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = resnet(image())
    assert {x.dtype for x in outputs.values()} == {torch.bfloat16}
    assert bool(calls) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert_close(outputs, plain(image()), 0.05)


def test_mixed_precision_in_training_is_no_coarser_than_the_plain_resnets(tiny_config):
    plain = plain_resnet(tiny_config)
    gradients = {}
    for name, resnet, dtype in (
        ("exact", copy.deepcopy(plain).double(), torch.float64),
        ("plain", plain, torch.float32),
        ("folded", folded(plain), torch.float32),
    ):
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            output = resnet(image(dtype=dtype))["res5"]
        output.to(dtype).square().mean().backward()
        of_weights = [p.grad for p in resnet.parameters() if p.grad is not None]
        assert all(x.dtype == dtype for x in of_weights)
        gradients[name] = torch.cat([x.flatten().double() for x in of_weights])
    errors = {name: (x - gradients["exact"]).norm() for name, x in gradients.items()}
    assert errors["folded"] < 1.2 * errors["plain"] < 0.3 * gradients["exact"].norm()


def test_checkpointed_blocks_keep_less_and_give_the_same_gradients(tiny_config):
    plain = plain_resnet(tiny_config).double()
    kept, gradients = [], []
    for checkpointed in (False, True):
        resnet = folded(plain)
        if checkpointed:
            assert checkpoint_blocks(resnet)
        saved = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, saved=saved: (saved.update({x.data_ptr(): x.nbytes}), x)[1], lambda x: x
        ):
            output = resnet(image(dtype=torch.float64))["res5"]
        kept.append(sum(saved.values()))
        output.square().sum().backward()
        gradients.append([p.grad for p in resnet.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0]
