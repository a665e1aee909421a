"""Graphs in int8, by NNCF for OpenVINO and by ONNX Runtime's own quantizer: static, per channel.

Box and class heads stay in float, and so does the last layer of the mask decoder: errors there are errors of the
result. Softmax is computed in float everywhere.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr.errors import InputError
from detr.export.runtimes import Graph, open_graph, openvino_graph, package
from detr.export.writing import quiet, replaced

# What NNCF calls sensitive in transformers: normalization, positions and sums; OpenVINO's names.
ARITHMETIC = ("Add", "Divide", "Multiply", "MVN", "Power", "ReduceMean", "Sqrt", "SquaredDifference", "Subtract")
RANKED = 16  # inputs on which layers are compared, to find those that cost most
PACKAGES = {"openvino": ("nncf",), "onnx": ()}

Inputs = tuple[np.ndarray, ...]


def check_packages(format: str) -> None:
    """Raises InputError where a package that quantizes graphs of this format is missing."""
    for name in PACKAGES[format]:
        with quiet():
            package(name, format)


def quantize(
    format: str,
    path: str,
    samples: Sequence[Any],
    load: Callable[[Any], Inputs],
    metric: Callable[[Graph], float] | None = None,
    max_drop: float = 0.0,
) -> None:
    """Replaces the graph in a file by one in int8.

    samples: what ``load`` makes the graph's inputs from, one example each
    metric: of a graph, the higher the better; where it is given, layers go back to float until it is at most
        ``max_drop`` lower

    Raises InputError where the quantizer cannot take the graph, and where no layer is left in int8.
    """
    with replaced(path) as new:
        try:
            with quiet():
                if format == "openvino":
                    _openvino(path, new, samples, load, metric, max_drop)
                else:
                    _onnx(path, new, samples, load)
        except (InputError, OSError):
            raise
        except Exception as error:  # each quantizer raises its own kinds
            reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
            raise InputError(f"{os.path.basename(path)} cannot be made int8 ({reason})") from error


def _openvino(
    path: str,
    new: str,
    samples: Sequence[Any],
    load: Callable[[Any], Inputs],
    metric: Callable[[Graph], float] | None,
    max_drop: float,
) -> None:
    nncf, openvino = package("nncf", "openvino"), package("openvino", "openvino")
    model = openvino.Core().read_model(path)
    nodes = {node.get_friendly_name(): node for node in model.get_ops()}
    parents = {
        name: [port.get_source_output().get_node().get_friendly_name() for port in node.inputs()]
        for name, node in nodes.items()
    }
    outputs = {next(iter(port.get_names())): port.get_node().get_friendly_name() for port in model.outputs}
    weighted = {name for name, node in nodes.items() if node.get_type_name() in ("Convolution", "MatMul")}
    kinds = {name: node.get_type_name() for name, node in nodes.items()}
    kept = {x for x in float_nodes(parents, outputs, weighted) if kinds[x] not in ("Constant", "Parameter", "Result")}
    arithmetic = {name for name, kind in kinds.items() if kind in ARITHMETIC}
    options = {
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(samples),
        "ignored_scope": nncf.IgnoredScope(names=sorted(kept | arithmetic - residual_sums(parents, kinds))),
    }
    data = nncf.Dataset(samples, load)
    if metric is None:
        quantized = nncf.quantize(model, data, **options)
    else:
        validate, validation = _validation(path, samples[:RANKED], load, metric)
        quantized = nncf.quantize_with_accuracy_control(
            model,
            data,
            nncf.Dataset(validation),
            validate,
            max_drop=max_drop,
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=len(validation) - 1, num_ranking_workers=1
            ),
            **options,
        )
    if not any(node.get_type_name() == "FakeQuantize" for node in quantized.get_ops()):
        if metric is None:
            raise InputError("no layer of this model can be in int8: export it in float32")
        raise InputError(
            f"int8 costs more than --max-drop {max_drop:g} until every layer is back in float: allow more, calibrate "
            "with other images, or export in float32"
        )
    openvino.save_model(quantized, new, compress_to_fp16=False)


def _validation(
    path: str, samples: Sequence[Any], load: Callable[[Any], Inputs], metric: Callable[[Graph], float]
) -> tuple[Callable[[Any, Iterable[Any]], tuple[float, list[float]]], list[Any]]:
    """What NNCF's accuracy control asks for: a function of a compiled graph and items, and all items.

    All of them stand for the metric, single ones for how near the outputs are to the exact graph's, by which layers are
    ranked. The last item is None: it tells the one call from the other. NNCF can compare outputs itself, but then it
    gives back first what matters least (3.4.0).
    """
    inputs = [tuple(map(torch.from_numpy, load(x))) for x in samples]
    exact = open_graph("openvino", path, torch.device("cpu"))
    expected = [exact(*x) for x in inputs]

    def validate(compiled: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        graph, indices = openvino_graph(compiled), list(items)
        near = [0.0 if i is None else -_error(graph(*inputs[i]), expected[i]) for i in indices]
        return metric(graph) if None in indices else sum(near) / len(near), near

    return validate, [*range(len(samples)), None]


def _error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """The sum over the outputs of their squared difference, relative to their square."""
    return sum(float((x - y).square().sum() / y.square().sum()) for x, y in zip(found, expected, strict=True))


def _onnx(path: str, new: str, samples: Sequence[Any], load: Callable[[Any], Inputs]) -> None:
    onnx = package("onnx", "onnx")
    quantization, shapes = (package(f"onnxruntime.quantization{x}", "onnx") for x in ("", ".shape_inference"))

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self, names: list[str]) -> None:
            self.inputs = (dict(zip(names, load(x), strict=True)) for x in samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    prepared = new + ".float"
    shapes.quant_pre_process(path, prepared, skip_symbolic_shape=True)
    graph = onnx.load(prepared).graph
    constants = {x.name for x in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    makers = {output: node.name for node in graph.node for output in node.output}
    parents = {name: [makers[x] for x in node.input if x in makers] for name, node in nodes.items()}
    weighted = {
        name
        for name, node in nodes.items()
        if node.op_type in ("Conv", "Gemm", "MatMul") and constants & set(node.input)
    }
    outputs = {x.name: makers[x.name] for x in graph.output}
    kept = float_nodes(parents, outputs, weighted)
    quantization.quantize_static(
        prepared,
        new,
        Reader([x.name for x in graph.input]),
        per_channel=True,
        # Without the products of attention, of which none has weights.
        nodes_to_quantize=sorted(weighted - kept),
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )
    os.remove(prepared)


def float_nodes(parents: Mapping[str, list[str]], outputs: Mapping[str, str], weighted: Collection[str]) -> set[str]:
    """The nodes of a graph that stay in float: its last layers, which the outputs do not share.

    parents: of each node, the nodes that its inputs come from
    outputs: by its name the node that each output comes from
    weighted: the nodes with weights

    In the network that is what logits or boxes alone depend on, so the two heads; in the mask decoder what comes
    after the last node with weights, and that node.
    """
    if "logits" in outputs:
        return _before(parents, [outputs["logits"]]) ^ _before(parents, [outputs["boxes"]])
    found, todo = set[str](), deque(outputs.values())
    while todo:
        node = todo.popleft()
        if node not in found:
            found.add(node)
            todo.extend(parents[node] if node not in weighted else ())
    return found


def residual_sums(parents: Mapping[str, list[str]], kinds: Mapping[str, str]) -> set[str]:
    """The sums of convolutions with each other, with constants and with sums of these, before any matrix product.

    In float they would bring every feature of a residual network back to float. ``kinds``: of OpenVINO's operations
    """
    found = set[str]()
    after_convolution, after_product = set[str](), set[str]()
    for node in TopologicalSorter(parents).static_order():
        after_convolution |= {node} if kinds[node] == "Convolution" or after_convolution & set(parents[node]) else set()
        after_product |= {node} if kinds[node] == "MatMul" or after_product & set(parents[node]) else set()
        summed = all(x in after_convolution or kinds[x] == "Constant" for x in parents[node])
        if kinds[node] == "Add" and summed and node in after_convolution - after_product:
            found.add(node)
    return found


def _before(parents: Mapping[str, list[str]], nodes: Iterable[str]) -> set[str]:
    """These nodes and all that they depend on."""
    found, todo = set[str](), list(nodes)
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo.extend(parents[node])
    return found
