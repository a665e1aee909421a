"""The programs that run exported graphs: onnxruntime, OpenVINO and torch itself.

A graph takes tensors and returns tensors. Its inputs may lie on any device; its outputs come to that of the first.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detr.errors import InputError

Graph = Callable[..., tuple[Tensor, ...]]

# The packages that a format needs besides torch, where it is run. Writing may need more.
RUNTIME_PACKAGES = {"onnx": ("onnxruntime",), "openvino": ("openvino",), "torchscript": (), "torch_export": ()}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt", "torch_export": ".pt2"}
FORMATS = tuple(SUFFIXES)


def package(name: str, format: str) -> Any:
    """The imported package. Raises InputError, with the remedy, where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(
            f"the format {format} needs {name}, which is not installed: pip install {name}, or in a clone of this "
            "project pip install -e '.[export]'"
        ) from error


def open_graph(format: str, path: str, device: torch.device) -> Graph:
    """The graph in a file that was exported, ready to run.

    device: where to run it, as far as the format leaves that open: OpenVINO runs on the CPU, ONNX there too where
        onnxruntime has no CUDA, and TorchScript must run where it was traced

    Raises InputError for a missing package and for a file that cannot be read.
    """
    for name in RUNTIME_PACKAGES[format]:
        package(name, format)
    opener = {"onnx": _onnx, "openvino": _openvino, "torchscript": _torchscript, "torch_export": _torch_export}[format]
    try:
        return opener(path, device)
    except InputError:
        raise
    except Exception as error:  # each program raises its own kinds
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"{path} cannot be opened ({reason}): is it damaged? Then export the model again") from error


def _onnx(path: str, device: torch.device) -> Graph:
    onnxruntime = package("onnxruntime", "onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # a limit on torch's threads holds here too
    wanted = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        wanted.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(path, options, providers=wanted)
    names = [x.name for x in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(None, dict(zip(names, map(_array, inputs), strict=True)))
        return tuple(torch.from_numpy(x).to(inputs[0].device) for x in outputs)

    return run


def _openvino(path: str, device: torch.device) -> Graph:
    openvino = package("openvino", "openvino")
    options = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino_graph(openvino.Core().compile_model(path, "CPU", options))


def openvino_graph(compiled: Any) -> Graph:
    """OpenVINO's ``CompiledModel`` as a graph."""

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        results = compiled([_array(x) for x in inputs])
        return tuple(torch.from_numpy(results[i]).to(inputs[0].device) for i in range(len(compiled.outputs)))

    return run


def _torchscript(path: str, device: torch.device) -> Graph:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        module = torch.jit.load(path)  # type: ignore[no-untyped-call]
    return lambda *inputs: _run_module(module, device, inputs)


def _torch_export(path: str, device: torch.device) -> Graph:
    program = torch.export.load(path)
    least, most = _bounds(program)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    module = program.module()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        shape = inputs[0].shape
        # A batch of one runs, although the program's bounds begin at two.
        if any(not low <= length <= high for length, low, high in zip(shape[2:], least[2:], most[2:], strict=True)):
            height, width = shape[-2:]
            upper = f" and at most {most[2]} x {most[3]}" if max(most[2:]) < 2**31 else ""
            raise InputError(
                f"{path} takes images of at least {least[2]} x {least[3]}{upper} pixels, not {height} x {width}: "
                "resize them, or export the model in another format"
            )
        return _run_module(module, device, inputs)

    return run


def _bounds(program: torch.export.ExportedProgram) -> tuple[list[int], list[int]]:
    """The least and the largest length of each axis of a program's first input."""
    name = program.graph_signature.user_inputs[0]
    node = next(node for node in program.graph.nodes if node.name == name)
    least, most = [], []
    for length in node.meta["val"].shape:
        bounds = None if isinstance(length, int) else program.range_constraints.get(length.node.expr)
        least.append(int(length) if bounds is None else int(bounds.lower))
        most.append(int(length) if bounds is None else int(min(bounds.upper, 2**31)))
    return least, most


def _run_module(module: Any, device: torch.device, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        outputs = module(*(x.to(device) for x in inputs))
    return tuple(x.to(inputs[0].device) for x in outputs)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().contiguous().numpy()
