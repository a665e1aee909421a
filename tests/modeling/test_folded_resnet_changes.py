"""A folded ResNet goes along with whatever becomes of its modules after building, as Detectron2's does."""

import copy
import functools
import io
import pickle

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from detr.modeling.folded_resnet import FoldedBottleneck, FoldedStage, checkpoint_blocks
from tests.modeling.test_folded_resnet import FusedCalls, assert_close, folded, image, liven, plain_resnet, train_step


def thaw(model):
    return FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(model)


def thaw_by_hand(model):
    """Unlike Detectron2's conversion, it lets the norms count their batches."""
    for module in list(model.modules()):
        if isinstance(getattr(module, "norm", None), FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(module.norm.num_features).to(module.norm.weight.dtype)
            norm.load_state_dict({**module.norm.state_dict(), "num_batches_tracked": torch.tensor(0)})
            module.norm = norm
    return model


class Adapter(nn.Module):
    """Whatever it wraps, and a trained gain. It keeps its input and output, and copies of them."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.gain = nn.Parameter(torch.tensor(0.75, dtype=torch.float64))

    def forward(self, x):
        out = self.inner(x) * self.gain.to(x.dtype)
        self.seen, self.copies = [x, out], [x.detach().clone(), out.detach().clone()]
        return out


class Scaled(Conv2d):
    """Detectron2's convolution, with a trained gain."""

    def __init__(self, conv):
        nn.Module.__init__(self)
        self.__dict__ |= copy.deepcopy(conv).__dict__
        self.gain = nn.Parameter(torch.tensor(0.75, dtype=torch.float64))

    def forward(self, x):
        return super().forward(x * self.gain.to(x.dtype))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def wrap(*names, wrapper=Adapter):
    def change(model):
        for name in names:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, wrapper(model.get_submodule(name)))
        return model

    return change


def on(*names):
    """Makes a function of a module a change of the model."""

    def decorate(function):
        def change(model):
            for name in names:
                function(model.get_submodule(name))
            return model

        return change

    return decorate


on_convolutions = on("res3.1.conv2", "res5.0.shortcut", "res2.0.conv1")


def give_own_forward(module):
    forward = module.forward
    module.forward = lambda x: 0.5 * forward(x)


def give_subclass(block):
    parent = type(block)
    block.__class__ = type("Halved", (parent,), {"forward": lambda self, x: 0.5 * parent.forward(self, x)})


def add_input_hook(conv):
    conv.norm.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.5,))


CHANGES = {
    "convolutions wrapped": wrap("stem.conv1", "res3.0.conv1", "res3.0.shortcut", "res4.1.conv3"),
    "convolutions of a subclass": wrap("res3.0.conv1", "res3.0.shortcut", "res4.1.conv3", wrapper=Scaled),
    "blocks wrapped": wrap("stem", "res2.1", "res3.0", "res4.5"),
    "blocks of a subclass": on("stem", "res3.1", "res3.2")(give_subclass),
    "a block removed": wrap("res3.1", wrapper=lambda block: nn.Identity()),
    "parametrized": on_convolutions(lambda conv: parametrize.register_parametrization(conv, "weight", Doubled())),
    "weights normalized": on_convolutions(parametrizations.weight_norm),
    "pruned": on_convolutions(functools.partial(prune.l1_unstructured, name="weight", amount=0.5)),
    "norms hooked": on_convolutions(add_input_hook),
    "another forward of convolutions": on_convolutions(give_own_forward),
    "another forward of blocks": on("stem", "res3.1", "res3.2")(give_own_forward),
    "another norm": on_convolutions(lambda conv: setattr(conv, "norm", nn.GroupNorm(2, conv.out_channels).double())),
    "no norm": on_convolutions(lambda conv: setattr(conv, "norm", None)),
    "an activation": on_convolutions(lambda conv: setattr(conv, "activation", nn.functional.silu)),
    "a bias": on_convolutions(lambda conv: setattr(conv, "bias", nn.Parameter(torch.ones(conv.out_channels).double()))),
    "padding by name": on("res3.1.conv2")(lambda conv: setattr(conv, "padding", "same")),
    "frozen": lambda model: model.requires_grad_(False),
    "unfrozen": lambda model: model.requires_grad_(True),
    "norms thawed": thaw,
    "norms thawed by hand": thaw_by_hand,
    "norms synchronized": lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(thaw_by_hand(model)),
    "norms frozen again": lambda model: FrozenBatchNorm2d.convert_frozen_batchnorm(thaw_by_hand(model)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_resnet_is_that_of_detectron2(tiny_config, change):
    """In training, in evaluation with the statistics and weights that follow, and fused where that can be."""
    plain = plain_resnet(tiny_config).double()
    resnet, plain = change(folded(plain)), change(plain)
    if any(p.requires_grad for p in plain.parameters()):
        assert_close(train_step(resnet), train_step(plain), 1e-9)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        with torch.no_grad():
            assert_close(*(model.eval().to(dtype)(image(dtype=dtype)) for model in (resnet, plain)), tolerance)


def test_thawed_norms_train(tiny_config):
    resnet = thaw(folded(plain_resnet(tiny_config)))
    norm = resnet.res3[1].conv2.norm
    before = norm.running_mean.clone()
    resnet.train()(image())["res5"].square().mean().backward()
    assert norm.weight.grad.abs().max() > 0
    assert norm.bias.grad.abs().max() > 0
    assert not torch.equal(norm.running_mean, before)


@torch.no_grad()
def test_norms_frozen_after_building_are_folded(tiny_config):
    plain = plain_resnet(tiny_config, norm="BN", **{"MODEL.BACKBONE.FREEZE_AT": 0}).eval()
    resnet = folded(plain)
    with FusedCalls() as calls:
        resnet(image())
        assert not calls.count
        FrozenBatchNorm2d.convert_frozen_batchnorm(resnet)
        assert_close(resnet(image()), plain(image()))
    assert calls.count == 52


@torch.no_grad()
def test_what_an_adapter_keeps_is_not_overwritten(tiny_config):
    resnet = wrap("res2.1", "res3.2.conv1")(folded(plain_resnet(tiny_config)))
    with FusedCalls() as calls:
        resnet(image())
    assert calls.count == 52 - 3  # the block around an adapter is not folded; the one inside an adapter is
    assert all(map(torch.equal, resnet.res2[1].seen, resnet.res2[1].copies))
    inside = resnet.res3[2].conv1
    assert torch.equal(inside.seen[0], inside.copies[0])  # Detectron2's block writes its ReLU over the output


def test_checkpointed_blocks_count_a_batch_once_and_drop_the_same(tiny_config):
    """Though their insides are computed twice."""
    drop = wrap("res4.1.conv2", wrapper=lambda conv: nn.Sequential(conv, nn.Dropout(0.5)))
    plain = plain_resnet(tiny_config).double()
    for change in (drop, thaw_by_hand):
        steps = []
        for checkpointed in (False, True):
            model = folded(plain)
            if checkpointed:
                checkpoint_blocks(model)
            model = change(model)
            torch.manual_seed(3)
            steps.append(train_step(model))
        assert_close(*steps, 1e-9)


def test_norms_that_learn_are_nothing_to_checkpoint(tiny_config):
    resnet = folded(plain_resnet(tiny_config, norm="BN", **{"MODEL.BACKBONE.FREEZE_AT": 0}))
    assert not checkpoint_blocks(resnet)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_a_file(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_a_file])
@torch.no_grad()
def test_copies_compute_the_same(tiny_config, duplicate):
    plain = plain_resnet(tiny_config)
    resnet = folded(plain)
    assert list(resnet.state_dict()) == list(plain.state_dict())
    again = duplicate(resnet)
    assert isinstance(again.res3[1], FoldedBottleneck)
    assert isinstance(again.res3, FoldedStage)
    with FusedCalls() as calls:
        assert_close(again(image()), plain(image()))
    assert calls.count == 52
    changed = (duplicate(change(resnet)) for change in (wrap("res3.1", "res4.1.conv1"), thaw))
    for found in changed:
        assert_close(found.eval()(image()), resnet.eval()(image()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_a_file])
@torch.no_grad()
def test_copies_of_a_detr_detect_the_same(tiny_config, duplicate):
    model, images = detr(tiny_config)
    again = duplicate(model.eval())
    for found, expected in zip(*(m.forward_network(images, False)[:2] for m in (again, model)), strict=True):
        assert torch.equal(found, expected)


def detr(tiny_config):
    torch.manual_seed(0)
    model = build_model(tiny_config({"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.BACKBONE.FREEZE_AT": 2}))
    liven(model)
    images = ImageList.from_tensors([torch.randn(3, 64, 96), torch.randn(3, 64, 64)], model.backbone.size_divisibility)
    return model, images


@pytest.fixture
def compiler():
    """Without generated code, which would take minutes."""
    torch.compiler.reset()
    yield functools.partial(torch.compile, backend="aot_eager")
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_backbone_is_the_same(tiny_config, compiler):
    plain = plain_resnet(tiny_config, features=("res3", "res5"))
    resnet = folded(plain)
    compiled = compiler(resnet, fullgraph=True)
    with torch.no_grad():
        assert_close(compiled.eval()(image()), plain.eval()(image()))
    expected = train_step(plain, torch.float32)
    compiled.train()(image())
    found = train_step(compiled, torch.float32)
    assert_close({name.removeprefix("_orig_mod."): x for name, x in found.items()}, expected, 1e-4)


@pytest.mark.slow
def test_a_compiled_detr_is_the_same(tiny_config, compiler):
    model, images = detr(tiny_config)
    compiled = compiler(model.forward_network)
    with torch.no_grad():
        for found, expected in zip(
            *(f(images, False)[:2] for f in (compiled, model.eval().forward_network)), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = []
    for network in (compiled, model.train().forward_network):
        model.zero_grad()
        outputs = network(images, True)
        (outputs.logits.square().sum() + outputs.boxes.square().sum()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_close(*gradients, 1e-4)


@torch.no_grad()
def test_compiled_parts_are_called(tiny_config):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    plain = plain_resnet(tiny_config)
    resnet = wrap("res3.1", "res4.1.conv1", wrapper=functools.partial(torch.compile, backend=backend))(folded(plain))
    for module in (resnet.stem, resnet.res2[1], resnet.res2[2].conv1, resnet.res3[2].conv2.norm):
        module.compile(backend=backend)
    torch.compiler.reset()
    assert_close(resnet(image()), plain(image()))
    torch.compiler.reset()
    assert len(compiled) == 6
