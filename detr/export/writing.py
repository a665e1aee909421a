"""A graph in each of the formats, from a module and an example of its inputs."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

import torch
from torch.export import Dim

from detr.errors import InputError
from detr.export.networks import Part
from detr.export.runtimes import SUFFIXES, package

# The packages that a format is written and then checked with; their versions are noted.
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "torchscript": (),
    "torch_export": (),
}


def check_packages(format: str) -> None:
    """Raises InputError where a package that the format needs is missing."""
    for name in PACKAGES[format]:
        package(name, format)


def write_graph(format: str, part: Part, folder: str) -> None:
    """Writes ``part`` into the folder, in one or two files named after it.

    Raises InputError where the exporter cannot take the module.
    """
    path = os.path.join(folder, part.name + SUFFIXES[format])
    writer = {"onnx": _onnx, "openvino": _openvino, "torchscript": _torchscript, "torch_export": _torch_export}[format]
    try:
        with torch.no_grad(), quiet():
            writer(part, path)
    except OSError:  # a full disk is reported by the caller
        raise
    except Exception as error:  # each exporter raises its own kinds
        reason = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise InputError(f"this model's {part.name} cannot be exported as {format} ({reason})") from error


@contextlib.contextmanager
def replaced(path: str) -> Iterator[str]:
    """Gives the path of a new graph. At the end it takes the place of the one in ``path``; after an error it does not.

    Files are moved, not written over: a graph that was opened may still read them.
    """
    with tempfile.TemporaryDirectory(dir=os.path.dirname(path)) as folder:
        yield os.path.join(folder, os.path.basename(path))
        for name in os.listdir(folder):
            os.replace(os.path.join(folder, name), os.path.join(os.path.dirname(path), name))


def _torchscript(part: Part, path: str) -> None:
    # Traced, not scripted: Detectron2's backbones cannot be scripted. That no size is baked in is checked afterwards.
    traced = torch.jit.trace(part.module, part.example, check_trace=False)  # type: ignore[no-untyped-call]
    frozen = torch.jit.freeze(traced)  # type: ignore[no-untyped-call]
    torch.jit.save(frozen, path, _extra_files=dict(part.metadata))  # type: ignore[no-untyped-call]


def _program(part: Part) -> torch.export.ExportedProgram:
    shapes = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in part.axes.items()}
    return torch.export.export(part.module, part.example, dynamic_shapes=shapes)


def _torch_export(part: Part, path: str) -> None:
    torch.export.save(_program(part), path, extra_files=dict(part.metadata))


def _onnx(part: Part, path: str) -> None:
    program = torch.onnx.export(
        _program(part), dynamo=True, input_names=list(part.axes), output_names=part.outputs, verbose=False
    )
    assert program is not None
    program.model.metadata_props.update(part.metadata)
    program.save(path)


def _openvino(part: Part, path: str) -> None:
    openvino = package("openvino", "openvino")
    model = openvino.convert_model(part.module, example_input=part.example)
    for port, (name, axes), example in zip(model.inputs, part.axes.items(), part.example, strict=True):
        port.get_tensor().set_names({name})
        shape = [-1 if axis in axes else length for axis, length in enumerate(example.shape)]
        port.get_node().set_partial_shape(openvino.PartialShape(shape))
    for port, name in zip(model.outputs, part.outputs, strict=True):
        port.get_tensor().set_names({name})
    model.validate_nodes_and_infer_types()
    for key, text in part.metadata.items():
        model.set_rt_info(text, ["detr", key])
    openvino.save_model(model, path, compress_to_fp16=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the messages that exporters and quantizers print for every model, and moves their progress to stderr;
    errors pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit", category=FutureWarning)
        # Tracing warns wherever a size reaches Python. The check with other sizes shows whether one was baked in.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        # Of weights whose memory is in another order, as convolutions have it here.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group", category=UserWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        loggers = [logging.getLogger(name) for name in ("onnxscript", "nncf", None)]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
