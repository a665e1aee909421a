"""Graphs in int8 and with weights of half the size: what stays in float, what is checked, and what is reported."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from PIL import Image
from torch import nn

from detr.errors import InputError
from detr.export import Reduction, get_config, load
from detr.export.checking import agreement, check_agreement
from detr.export.quantization import float_nodes, quantize, residual_sums
from detr.export.reducing import _check_drop
from detr.export.runtimes import open_graph
from detr.export.writing import quiet
from tests.conftest import QUICKSTART
from tests.export.conftest import PANOPTIC, SETTINGS, run
from tests.export.test_metadata import assert_detected, detected, expected
from tests.lively import batch

INT8 = ("--int8", "--calibration", "shapes_train", "--images", "6")


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def int8(request, panoptic, shapes_root, tmp_path_factory):
    """The folder of a panoptic model in int8, and what the command printed."""
    folder = tmp_path_factory.mktemp("int8") / "exported"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run(PANOPTIC, request.param, folder, panoptic[0], *INT8, "--evaluate", "shapes_val_panoptic")
    return folder, printed.getvalue().splitlines()


def _openvino_graph(path):
    """Parents and kinds by node."""
    import openvino

    nodes = {x.get_friendly_name(): x for x in openvino.Core().read_model(path).get_ops()}
    parents = {
        name: [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]
        for name, node in nodes.items()
    }
    outputs = {next(iter(x.input(0).get_source_output().get_names())): name for name, x in nodes.items()
               if x.get_type_name() == "Result"}  # fmt: skip
    return parents, {name: x.get_type_name() for name, x in nodes.items()}, outputs


def _onnx_graph(path):
    import onnx

    graph = onnx.load(path).graph
    makers = {output: node.name for node in graph.node for output in node.output}
    parents = {node.name: [makers[x] for x in node.input if x in makers] for node in graph.node}
    return parents, {x.name: x.op_type for x in graph.node}, {x.name: makers[x.name] for x in graph.output}


def test_heads_and_softmax_stay_in_float(int8):
    folder, _ = int8
    if (folder / "network.onnx").exists():
        graphs, quantizer = [_onnx_graph(folder / f"{name}.onnx") for name in ("network", "mask_decoder")], "Quantize"
    else:
        graphs, quantizer = [_openvino_graph(folder / f"{name}.xml") for name in ("network", "mask_decoder")], "FakeQ"
    for (parents, kinds, outputs), least in zip(graphs, (20, 4), strict=True):
        weighted = {name for name, kind in kinds.items() if kind in ("Conv", "Convolution")}
        head = float_nodes(parents, outputs, weighted)
        assert {"MatMul", "Gemm", "Conv", "Convolution"} & {kinds[name] for name in head}
        products = [name for name in head if kinds[name] in ("MatMul", "Gemm", "Conv", "Convolution")]
        near = head | {parent for name in products for parent in parents[name]}
        assert not [name for name in near if "fakequantize" in kinds[name].lower() or kinds[name] == "QuantizeLinear"]
        assert sum(quantizer in kind for kind in kinds.values()) >= least  # but the rest is in int8
        softmax = [name for name, kind in kinds.items() if kind == "Softmax"]
        assert not [x for name in softmax for x in parents[name] if "quantize" in kinds[x].lower()]


def test_what_an_int8_export_says(int8):
    folder, lines = int8
    described = json.loads((folder / "export.json").read_text())
    assert described["dtype"] == "int8"
    assert described["calibration"] == {"dataset": "shapes_train", "images": 6}
    assert [len(x["images"]) for x in described["checked"]] == [1, 3]
    assert all(0.5 < value <= 1 for x in described["checked"] for value in x["agreement"].values())
    measured = described["measured"]
    assert measured["float32"].keys() == measured["int8"].keys() >= {"bbox/AP", "panoptic_seg/PQ"}
    assert next(iter(measured["int8"])) == "panoptic_seg/PQ"
    assert any(line.startswith("measured  on shapes_val_panoptic: panoptic_seg/PQ") for line in lines)
    assert any("agreement with the model, of 1: logits 0." in line for line in lines)
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert all(sizes[name] == size for name, size in described["files"].items())


def test_an_int8_model_runs_at_any_size(int8, panoptic):
    """Detections are near those in float: most classes of confident queries, and boxes."""
    model = load(str(int8[0]), "cpu")
    images = panoptic[1].preprocess(batch([(96, 128), (131, 97), (33, 200)]))
    (checked,) = check_agreement(model, panoptic[1], [images], 0.5)
    assert checked["agreement"].keys() == {"logits", "boxes", "mask logits"}
    assert all("panoptic_seg" in x for x in model(batch([(96, 128), (60, 40)])))


def test_an_int8_model_in_its_script_and_in_detectron2s_predictor(int8, photo):
    folder = str(int8[0])
    model = load(folder, "cpu")
    assert_detected(detected(int8[0], photo), expected(model, SETTINGS, photo, 0.5))
    predictor, pixels = DefaultPredictor(get_config(folder)), np.asarray(Image.open(photo))
    found = predictor(pixels[..., ::-1])["instances"]  # it takes BGR
    resized = predictor.aug.get_transform(pixels).apply_image(pixels).transpose(2, 0, 1).copy()
    (same,) = model([{"image": torch.as_tensor(resized), "height": 197, "width": 311}])
    assert len(found)
    assert torch.equal(found.pred_boxes.tensor, same["instances"].pred_boxes.tensor)


@pytest.mark.parametrize(
    ("format", "dtype", "config"), [("onnx", "bfloat16", PANOPTIC), ("openvino", "float16", QUICKSTART)]
)
def test_weights_of_half_the_size(boxes, panoptic, tmp_path, format, dtype, config):
    opts, eager = panoptic if config == PANOPTIC else boxes
    run(config, format, tmp_path / "exported", opts, "--weights", dtype)
    described = json.loads((tmp_path / "exported" / "export.json").read_text())
    assert described["dtype"] == dtype
    assert min(min(x["agreement"].values()) for x in described["checked"]) > 0.99
    weights = sum(x.numel() for x in eager.parameters())
    if format == "onnx":  # whose file holds the graph too
        import onnx

        graphs = [onnx.load(path).graph for path in (tmp_path / "exported").glob("*.onnx")]
        size = sum(len(tensor.raw_data) for graph in graphs for tensor in graph.initializer)
    else:
        size = sum(value for name, value in described["files"].items() if name.endswith(".bin"))
    assert 1.8 * weights < size < 2.8 * weights  # in bytes
    logits, *_ = load(str(tmp_path / "exported"), "cpu").forward_network(eager.preprocess(batch([(96, 128)])))
    assert logits.dtype == torch.float32
    with torch.no_grad():
        expected = eager.forward_network(eager.preprocess(batch([(96, 128)])), return_intermediate=False).logits[-1]
    assert 0 < (logits - expected).abs().max() < 1  # rounded, so not the same


def test_agreement():
    expected = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert agreement(expected, expected) == pytest.approx(1)
    assert agreement(expected + torch.tensor([1.0, 2, 3]), expected) == pytest.approx(1)  # by hand: means do not count
    assert agreement(-expected, expected) == pytest.approx(-1)
    assert agreement(expected[:, :1].expand(-1, 5, -1) * 0, expected) == 0
    assert agreement(expected[:1, :1], expected[:1, :1]) == pytest.approx(1)  # a single query has no mean to compare
    with pytest.raises(ValueError, match="not finite"):
        agreement(expected / 0, expected)
    with pytest.raises(ValueError, match="shape"):
        agreement(expected[:1], expected)


def test_heads_are_what_logits_and_boxes_do_not_share():
    parents = {"norm": ["attend"], "class": ["norm"], "mlp": ["norm"], "sigmoid": ["mlp"], "attend": []}
    assert float_nodes(parents, {"logits": "class", "boxes": "sigmoid"}, {"class", "mlp"}) == {
        "class",
        "mlp",
        "sigmoid",
    }
    assert float_nodes(parents, {"masks": "sigmoid"}, {"mlp", "attend"}) == {"sigmoid", "mlp"}


def test_only_sums_of_residual_blocks_are_in_int8():
    kinds = {"conv": "Convolution", "conv2": "Convolution", "bias": "Constant", "position": "Sin", "product": "MatMul"}
    sums = {"biased": ["conv", "bias"], "block": ["biased", "conv2"], "next": ["block", "conv2"]}
    others = {"positioned": ["block", "position"], "attended": ["block", "product"], "later": ["attended", "conv2"]}
    parents = {"conv": [], "conv2": ["biased"], "bias": [], "position": [], "product": ["positioned"], **sums, **others}
    assert residual_sums(parents, {**kinds, **dict.fromkeys({**sums, **others}, "Add")}) == set(sums)


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("torchscript", INT8, "--int8 is for the formats onnx and openvino, not torchscript"),
        ("onnx", ("--int8",), "name a registered data set with --calibration"),
        ("onnx", ("--calibration", "shapes_train"), "--calibration is for --int8: give both or none"),
        ("onnx", ("--images", "10"), "--images is for --int8: give both or none"),
        ("onnx", (*INT8[:-1], "0"), "--images is 0: calibrate with one image at least"),
        ("onnx", (*INT8[:2], "shapes_trian"), "'shapes_trian' is not registered; did you mean shapes_train"),
        ("onnx", (*INT8, "--evaluate", "nothing"), "'nothing' is not registered"),
        ("onnx", (*INT8, "--max-drop", "0.5"), "give --int8 and --evaluate too"),
        ("onnx", (*INT8, "--evaluate", "shapes_val", "--max-drop", "1"), "--max-drop is for the format openvino"),
        ("openvino", (*INT8, "--evaluate", "shapes_val", "--max-drop", "-1"), "--max-drop is -1.0: give points"),
        ("openvino", ("--weights", "bfloat16"), "--weights bfloat16 is not for the format openvino; there are onnx: "),
        ("torchscript", ("--weights", "float16"), "--weights float16 is not for the format torchscript"),
        ("onnx", (*INT8, "--weights", "float16"), "give one of them"),
        ("onnx", ("--evaluate", "shapes_val"), "--evaluate compares --int8 or --weights with float32"),
    ],
)
def test_what_does_not_go_together(boxes, shapes_root, tmp_path, format, options, message):
    with pytest.raises(InputError, match=message):
        run(QUICKSTART, format, tmp_path / "exported", boxes[0], *options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def exact(boxes, tmp_path_factory):
    """The folder of a box model in OpenVINO."""
    folder = tmp_path_factory.mktemp("exact") / "exported"
    run(QUICKSTART, "openvino", folder, boxes[0])
    return folder


@pytest.fixture
def sensitive(tmp_path):
    """A graph of five convolutions, for images of which one channel is 1000 times as large as the others."""
    import openvino

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), *(nn.Conv2d(8, 8, 1) for _ in range(3)), nn.Conv2d(8, 2, 1)]
    with torch.no_grad():
        for layer in layers:
            layer.weight *= 2  # or what differs from image to image fades
        layers[0].weight[:, 0] /= 1000
    module = nn.Sequential(*(x for layer in layers for x in (layer, nn.ReLU())))[:-1].eval()
    with quiet():
        model = openvino.convert_model(module, example_input=torch.zeros(1, 3, 16, 16))
    model.outputs[0].get_tensor().set_names({"masks"})
    openvino.save_model(model, tmp_path / "network.xml", compress_to_fp16=False)
    return tmp_path


def _control(exact, folder, drop):
    """Makes a copy of the graph int8, whose outputs may be off by ``drop``; its path and how far they are off."""
    path = str(shutil.copytree(exact, folder) / "network.xml")
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1000.0, 1, 1]).view(3, 1, 1)
    images = [scale * torch.randn(1, 3, 16, 16, generator=generator) for _ in range(4)]
    graph = open_graph("openvino", path, torch.device("cpu"))
    expected = [graph(x)[0] for x in images]

    def metric(graph):  # NNCF divides by that of the exact graph
        return 100 - max(float((graph(x)[0] - y).abs().max()) for x, y in zip(images, expected, strict=True))

    samples = [(x.numpy(),) for x in images]
    quantize("openvino", path, samples, lambda x: x, metric if drop is not None else None, drop or 0.0)
    return path, 100 - metric(open_graph("openvino", path, torch.device("cpu")))


def _quantizers(path):
    return list(_openvino_graph(path)[1].values()).count("FakeQuantize")


def test_a_broken_quantization_is_noticed(exact, boxes, tmp_path):
    """Calibrated on black images, as by a preprocessing that went wrong: every range is far too small."""
    images = boxes[1].preprocess(batch([(96, 128), (64, 64)]))
    (checked,) = check_agreement(load(str(exact), "cpu"), boxes[1], [images], 0.999)
    assert min(checked["agreement"].values()) > 0.999
    shutil.copytree(exact, tmp_path / "dark")
    dark = (images.tensor.numpy() * 1e-6, torch.tensor(images.image_sizes).numpy())
    quantize("openvino", str(tmp_path / "dark" / "network.xml"), [dark], lambda x: x)
    model = load(str(exact), "cpu")
    model.network = open_graph("openvino", str(tmp_path / "dark" / "network.xml"), torch.device("cpu"))
    with pytest.raises(InputError, match=r"lost too much: on 2 images .* agree with the model's by .*, less than 0\.5"):
        check_agreement(model, boxes[1], [images], 0.5)


def test_layers_go_back_to_float_until_the_drop_holds(sensitive, tmp_path_factory):
    copies = tmp_path_factory.mktemp("copies")
    plain, off = _control(sensitive, copies / "plain", None)
    path, less = _control(sensitive, copies / "controlled", 0.7 * off)
    assert less <= 0.7 * off
    assert 0 < _quantizers(path) < _quantizers(plain)
    before = (sensitive / "network.xml").read_bytes(), (sensitive / "network.bin").read_bytes()
    with pytest.raises(InputError, match="int8 costs more than --max-drop 1e-09 until every layer is back in float"):
        _control(sensitive, copies / "impossible", 1e-9)
    left = copies / "impossible"
    assert before == ((left / "network.xml").read_bytes(), (left / "network.bin").read_bytes())


def test_a_drop_that_does_not_hold_ends_the_export():
    reduction = Reduction(True, "shapes_train", evaluate="shapes_val", max_drop=0.5)
    _check_drop({"bbox/AP": 60.0}, {"bbox/AP": 59.5}, reduction)
    with pytest.raises(InputError, match=r"costs 0\.60 points of bbox/AP on shapes_val, more than --max-drop 0\.5"):
        _check_drop({"bbox/AP": 60.0}, {"bbox/AP": 59.4}, reduction)
    with pytest.raises(InputError, match="int8 costs nan points"):
        _check_drop({"bbox/AP": 60.0}, {"bbox/AP": float("nan")}, reduction)
