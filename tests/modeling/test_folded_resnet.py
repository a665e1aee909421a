"""Folded ResNets compute what Detectron2's do, whichever way they take."""

import copy
import functools

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detr.modeling import folded_resnet
from detr.modeling.folded_resnet import checkpoint_blocks, fold_frozen_norms

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
    liven(backbone)
    return backbone


def liven(model):
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def folded(backbone):
    backbone = copy.deepcopy(backbone)
    fold_frozen_norms(backbone)
    return backbone


def image(n=2, dtype=torch.float32):
    return torch.randn(n, 3, 65, 97, generator=torch.Generator().manual_seed(1)).to(dtype)


class FusedCalls(TorchDispatchMode):
    """Counts the fused convolutions that torch is asked for, without those that try them; and copies of maps."""

    def __init__(self):
        super().__init__()
        self.count = self.copies = 0
        for dtype in (torch.float32, torch.bfloat16):
            folded_resnet._onednn_agrees(dtype)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "mkldnn::_convolution_pointwise" in func.name()
        self.copies += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


def assert_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name in expected:
        error = (found[name].double() - expected[name].double()).abs().max()
        assert error <= tolerance * expected[name].abs().max(), (name, error)


def train_step(model, dtype=torch.float64):
    """Outputs, gradients and, moved by the step, buffers."""
    outputs = model.train()(image(dtype=dtype))
    model.zero_grad()
    sum((x * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype)).sum() for x in outputs.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: x.detach() for name, x in outputs.items()}, **gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize(
    ("depth", "settings"),
    [(18, {}), (50, {}), (50, {"MODEL.RESNETS.NUM_GROUPS": 4}), (50, {"MODEL.RESNETS.RES5_DILATION": 2})],
    ids=str,
)
@torch.no_grad()
def test_every_feature_is_that_of_the_plain_resnet(tiny_config, depth, settings):
    """All of them at once: sums are written over maps that nobody else reads, and these must not be among them."""
    plain = plain_resnet(tiny_config, depth, **settings)
    resnet = folded(plain)
    with FusedCalls() as calls:
        outputs = resnet(image())
    assert_close(outputs, plain(image()))
    assert calls.count == (20 if depth == 18 else 52)
    assert calls.copies == 1  # of the stem's output, which is a feature


def test_a_training_step_is_that_of_the_plain_resnet(tiny_config):
    plain = plain_resnet(tiny_config, features=("res3", "res5")).double()
    found, expected = train_step(folded(plain)), train_step(plain)
    assert sum(name.endswith("conv2.weight") for name in expected) == 13  # of res3, res4 and res5
    assert_close(found, expected, 1e-9)


@torch.no_grad()
def test_forward_derivatives_are_those_of_the_plain_resnet(tiny_config):
    plain = plain_resnet(tiny_config).requires_grad_(False)
    weights = dict(plain.named_parameters())
    directions = {name: weight.cos() for name, weight in weights.items()}
    found, expected = [], []
    for model, derivatives in ((folded(plain), found), (plain, expected)):
        call = functools.partial(torch.func.functional_call, model)
        derivatives.append(torch.func.jvp(model, (image(),), (image().cos(),))[1])
        derivatives.append(torch.func.jvp(lambda x, call=call: call(x, (image(),)), (weights,), (directions,))[1])
    assert_close(found[0], expected[0])
    assert_close(found[1], expected[1])


@torch.no_grad()
def test_a_batch_may_be_empty(tiny_config):
    plain = plain_resnet(tiny_config)
    found, expected = folded(plain)(image(0)), plain(image(0))
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in expected.items()}


def test_frozen_stages_are_fused_in_training_too(tiny_config):
    with FusedCalls() as calls:
        outputs = folded(plain_resnet(tiny_config)).train()(image())
    assert [name for name, x in outputs.items() if not x.requires_grad] == ["stem", "res2"]
    assert calls.count == 1 + 3 * 3  # the stem, and three blocks of three


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


def test_a_training_follows_on_inference_mode(tiny_config):
    resnet = folded(plain_resnet(tiny_config)).eval()
    with torch.inference_mode():
        resnet(image())
    resnet.train()(image())["res5"].sum().backward()
    assert all(p.grad is not None for p in resnet.parameters() if p.requires_grad)


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
    names = ["res4.1", "res4.2.conv2", "res3.0.shortcut", "res2.1", "res2.0.conv3", "res3.1.conv2.norm"]
    seen = {id(model): {} for model in (plain, resnet)}
    for model in (plain, resnet):
        for name in names:
            notes = seen[id(model)]
            model.get_submodule(name).register_forward_hook(lambda *a, k=name, notes=notes: notes.update({k: a[2]}))
        model(image())
    # A convolution's output is overwritten by ReLU in both.
    assert_close(seen[id(resnet)], seen[id(plain)])


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
