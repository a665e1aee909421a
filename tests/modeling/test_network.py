"""MODEL.DETR.COMPILE and PAD_MULTIPLE: the compiled network is the network, whatever is done to the model."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch
from detectron2.modeling import build_model
from torch._dynamo.utils import counters

from detr import Detr
from detr.errors import InputError
from detr.modeling.attention_maps import attention
from detr.modeling.dropout import Dropout, MultiheadAttention
from tests.conftest import QUICKSTART, TINY, make_input
from tests.lively import batch, build_lively
from tests.modeling import cuda_cases
from tests.modeling.training_parts import NO_NOISE, PARTS, build_pair, make_batch, step

# As little as there can be: what takes time is to trace.
SMALL = {**TINY, "MODEL.DETR.DEC_LAYERS": 1, "MODEL.RESNETS.OUT_FEATURES": ("res2",)}
SIZES = [(96, 128)], [(96, 128), (60, 40)], [(64, 150)]

# torch looks for gradients of the queries that it is given.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@contextmanager
def backend(name):
    """Another than inductor, which takes a C++ compiler a minute."""
    torch.compiler.reset()
    counters.clear()
    try:
        with torch.compiler.set_stance("default", force_backend=name):
            yield
    finally:
        torch.compiler.reset()


@pytest.fixture
def traced():
    """What torch traces runs as it is: graphs are made, and no code is generated."""
    with backend("eager"):
        yield


def outputs(model, sizes):
    with torch.no_grad():
        found = model.forward_network(model.preprocess(batch(sizes)), return_intermediate=False)
    features = found.mask_features
    return [found.logits, found.boxes] + ([] if features is None else [features.memory, *features.pyramid])


def compiled(settings=None):
    model = build_lively(QUICKSTART, {**SMALL, **(settings or {})})
    model.compile_mode = "default"
    return model


def graphs():
    return counters["stats"]["unique_graphs"]


def assert_equal(model, expected, sizes):
    for ours, theirs in zip(outputs(model, sizes), outputs(expected, sizes), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


ONE_GRAPH = [
    ("masks, recomputed", True),
    ("masks and queries for training", True),
    ("panoptic", False),
]


@pytest.mark.parametrize(("name", "training"), ONE_GRAPH)
def test_the_network_is_one_graph(traced, name, training):
    """What torch cannot trace would be an error."""
    _, model = cuda_cases.build(name)
    model.train(training)
    for module in model.transformer.modules():
        if isinstance(module, Dropout):
            module.p = 0.1
        elif isinstance(module, MultiheadAttention):
            module.dropout = 0.1
    inputs = cuda_cases.batch()
    images, more = model.preprocess(inputs), []
    if training and model.training_queries is not None:
        targets = model.targets(inputs, tuple(images.tensor.shape[-2:]))
        more = [model.training_queries(model.query_embed.weight, targets)]
    with torch.set_grad_enabled(training):
        torch.compile(model.forward_network, fullgraph=True)(images, training, *more)
    assert graphs() == 1


def test_images_of_any_size(traced):
    model = compiled()
    expected = copy.deepcopy(model)
    expected.compile_mode = ""
    for sizes in SIZES:
        assert_equal(model, expected, sizes)
    made = graphs()
    for sizes in (*SIZES, [(66, 140)]):
        outputs(model, sizes)
    assert graphs() == made


def test_losses_and_gradients(tiny_config):
    """With all that is for training alone."""
    model = build_pair(tiny_config, {**SMALL, **PARTS["all"], **NO_NOISE})[1]
    inputs = make_batch()
    expected = step(model, inputs)
    model.compile_mode = "default"
    with backend("aot_eager"):
        found = step(model, inputs)
        assert graphs() == 1
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
def test_compiled_to_machine_code():
    """By inductor, as users have it."""
    model = build_lively(QUICKSTART, {**SMALL, "MODEL.DETR.COMPILE": "reduce-overhead"})
    expected = copy.deepcopy(model)
    expected.compile_mode = ""
    first = outputs(model, SIZES[0])
    kept = [x.clone() for x in first]
    assert_equal(model, expected, SIZES[0])
    model.query_embed.weight.data.add_(1)
    assert not torch.equal(outputs(model, SIZES[0])[0], kept[0])
    assert all(torch.equal(x, y) for x, y in zip(first, kept, strict=True))


def test_the_module_stays_as_it_is_and_changes_count(traced):
    model = compiled()
    names = list(model.state_dict())
    before = outputs(model, SIZES[0])
    assert list(model.state_dict()) == names
    assert copy.deepcopy(model).compile_mode == pickle.loads(pickle.dumps(model)).compile_mode == "default"
    calls = []
    handle = model.transformer.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    outputs(model, SIZES[0])
    handle.remove()
    outputs(model, SIZES[0])
    assert calls == [1]
    model.class_embed = torch.nn.Linear(TINY["MODEL.DETR.HIDDEN_DIM"], model.num_classes + 1)
    after = outputs(model, SIZES[0])
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1])
    model.load_state_dict({key: torch.zeros_like(x) for key, x in model.state_dict().items()})
    assert outputs(model, SIZES[0])[0].count_nonzero() == 0


def test_a_subclass_may_change_the_network(traced):
    class Shifted(Detr):
        def forward_heads(self, *args, **kwargs):
            found = super().forward_heads(*args, **kwargs)
            return found._replace(logits=found.logits + 1)

        def forward_network(self, images, return_intermediate, queries=None):
            found = super().forward_network(images, return_intermediate)
            return found._replace(boxes=found.boxes / 2)

    model = compiled()
    logits, boxes = outputs(model, SIZES[0])
    model.__class__ = Shifted
    shifted = outputs(model, SIZES[0])
    torch.testing.assert_close(shifted, [logits + 1, boxes / 2])


def test_attention_is_that_of_the_network(traced):
    model = compiled()
    inputs = batch(SIZES[0])
    found = attention(model, inputs, threshold=0.0)[0]
    model.compile_mode = ""
    expected = attention(model, inputs, threshold=0.0)[0]
    torch.testing.assert_close(found.decoder, expected.decoder)
    torch.testing.assert_close(found.encoder, expected.encoder)


def test_a_machine_that_cannot_compile():
    def without_compiler(graph, inputs):
        raise RuntimeError("No working C++ compiler found")

    model = compiled()
    expected = (
        r"^MODEL.DETR.COMPILE default: torch.compile fails here .*No working C\+\+ compiler found.* runs without$"
    )
    with backend(without_compiler), pytest.raises(InputError, match=expected):
        outputs(model, SIZES[0])


def test_an_error_of_the_network_stays_what_it_is(traced):
    model = compiled({"MODEL.DETR.POSITION_EMBEDDING": "learned"})
    with pytest.raises(ValueError, match="the learned position encoding covers feature maps up to 50 x 50"):
        outputs(model, [(250, 250)])


def test_unknown_modes_are_errors(tiny_config):
    with pytest.raises(InputError, match=r'COMPILE is .fast.: it must be one of "", default, reduce-overhead'):
        build_model(tiny_config({"MODEL.DETR.COMPILE": "fast"}))


@pytest.mark.parametrize("training", [True, False])
def test_padding_to_a_multiple(tiny_config, training):
    model = build_model(tiny_config({"MODEL.DETR.PAD_MULTIPLE": 48})).train(training)
    inputs = [make_input([[5.0, 5.0, 20.0, 20.0]], [1], size) for size in [(40, 97), (60, 31)]]
    images = model.preprocess(inputs)
    assert images.tensor.shape[-2:] == (96, 144)  # the quickstart's backbone asks for nothing
    assert images.image_sizes == [(40, 97), (60, 31)]
    seen = []
    model.backbone.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-2:]))
    found = model(inputs)
    assert seen == [(96, 144)]
    if training:
        assert all(x.isfinite() for x in found.values())
    else:
        assert [x["instances"].image_size for x in found] == images.image_sizes


def test_padding_keeps_what_the_backbone_asks_for(tiny_config):
    model = build_model(tiny_config({"MODEL.DETR.PAD_MULTIPLE": 48}))
    type(model.backbone).size_divisibility, before = property(lambda _: 32), type(model.backbone).size_divisibility
    try:
        assert model.padding_constraints == {"size_divisibility": 96}
    finally:
        type(model.backbone).size_divisibility = before


def test_padded_alone_images_are_as_in_a_batch(tiny_config):
    settings = {**TINY, "MODEL.DETR.PAD_MULTIPLE": 64, "MODEL.DETR.IMAGES_ALONE": True}
    model = build_lively(QUICKSTART, settings)
    inputs = batch([(60, 100), (90, 40), (60, 100)])
    for ours, theirs in zip(model(inputs), [model([x])[0] for x in inputs], strict=True):
        assert_scores(ours, theirs)


def assert_scores(ours, theirs):
    torch.testing.assert_close(ours["instances"].scores, theirs["instances"].scores, rtol=1e-4, atol=1e-5)
