"""Weights in half the size: float16 or bfloat16 in the file, float32 when the graph computes."""

from typing import Any

import numpy as np

from detr.export.runtimes import package
from detr.export.writing import replaced

SMALLEST = 256  # numbers of a tensor that is worth converting; scales and constants of formulas stay exact


def halve_weights(format: str, path: str, dtype: str) -> None:
    """Replaces the graph in a file by one whose weights are ``dtype``, as ``HALF_WEIGHTS`` has them."""
    with replaced(path) as new:
        if format == "openvino":
            openvino = package("openvino", "openvino")
            openvino.save_model(openvino.Core().read_model(path), new, compress_to_fp16=True)
        else:
            onnx = package("onnx", "onnx")
            model = onnx.load(path)
            _halve(onnx, model.graph, dtype)
            onnx.save(model, new)


def _halve(onnx: Any, graph: Any, dtype: str) -> None:
    """Stores large float32 tensors as ``dtype``, each with a cast to float32 behind it, which runtimes do once."""
    half = getattr(onnx.TensorProto, dtype.upper())
    casts = []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < SMALLEST:
            continue
        name, stored = tensor.name, f"{tensor.name}_{dtype}"
        halved = values.astype(onnx.helper.tensor_dtype_to_np_dtype(half))
        tensor.CopyFrom(onnx.numpy_helper.from_array(halved, stored))
        casts.append(onnx.helper.make_node("Cast", [stored], [name], f"{name}_cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
