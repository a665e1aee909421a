"""A GPU's tensors on any machine: shapes, types and devices as on a GPU, and a record of where the host waits for it.

torch's FakeTensorMode stands for the GPU, and refuses what a GPU refuses: tensors of two devices in one operator. Its
tensors have no values. What is on the host is computed for real; where the host reads from the GPU, it gets made-up
numbers, and the place in detr/ is recorded.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.source_tree import ROOT

CUDA, META = torch.device("cuda"), torch.device("meta")
aten = torch.ops.aten
# They give a number, or a shape that depends on numbers.
READING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.equal.default, aten.is_nonzero.default),
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


@contextmanager
def fake_cuda(backward: bool = False) -> Iterator[list[str]]:
    """Inside, one computes on the device "cuda". The list names where the host waited for it, as "matcher.py: forward".

    The host waits where it reads, and for a copy without ``non_blocking``, either way.

    backward: whether gradients are computed too, which turns autocast off
    """
    waits: list[str] = []
    with (
        # torch's own: autocast does nothing where there is no GPU, and a fake tensor reads a list number by number.
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda: True),
        patch("torch.cuda.current_stream"),
        patch.object(FakeTensor, "tolist", Tensor.tolist),
        FakeTensorMode(allow_non_fake_inputs=False) as mode,
        _Host(mode, waits, backward),
        _Python(waits),
    ):
        yield waits


def move_to_cuda(model: nn.Module) -> nn.Module:
    """Puts the model's parameters and buffers on ``fake_cuda``'s device, in place, as Module.to cannot. Returns it."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            moved = value.detach().to(CUDA, non_blocking=True)
            setattr(module, name, nn.Parameter(moved, value.requires_grad))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, value.to(CUDA, non_blocking=True))
    return model


class _Host(TorchDispatchMode):
    """Decides for each operator whether it runs on the host, on the GPU, or brings numbers from one to the other."""

    def __init__(self, mode: FakeTensorMode, waits: list[str], backward: bool) -> None:
        super().__init__()
        self.mode = mode
        self.backward = backward
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            # torch's own C++ asks. Hearing "cuda", its backward pass would look for the streams of a real GPU.
            return META if self.backward else args[0].fake_device
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == META:
            kwargs["device"] = CUDA
        target = kwargs.get("device")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        on_gpu = [isinstance(x, FakeTensor) for x in tensors]
        if not any(on_gpu) and (target is None or target.type == "cpu"):
            return _on_host(func, args, kwargs)
        to_host = func is aten._to_copy.default and target is not None and target.type == "cpu"
        if func in READING or to_host or _indexes_by_mask(func, args):
            if not kwargs.get("non_blocking"):
                self.waits.append(place())
            result = _on_host(func, args, kwargs)
            return result if to_host else tree_map_only(Tensor, self._with_shape_of, result)
        if self._is_upload(func, args, kwargs, on_gpu):
            self.waits.append(place())
        args, kwargs = tree_map_only(Tensor, self._on_fake_host, (args, kwargs))
        return func(*args, **kwargs)

    def _is_upload(self, func: Any, args: Any, kwargs: Any, on_gpu: list[bool]) -> bool:
        """Whether it copies from the host and waits until it is done."""
        if func is aten.copy_.default:
            return on_gpu == [True, False] and not (kwargs.get("non_blocking") or args[2:] == (True,))
        if func is aten._to_copy.default:
            return on_gpu == [False] and not kwargs.get("non_blocking")
        return func in INDEXING and not all(on_gpu)

    def _on_fake_host(self, x: Tensor) -> Tensor:
        return x if isinstance(x, FakeTensor) else self.mode.from_tensor(x)

    def _with_shape_of(self, x: Tensor) -> Tensor:
        with self.mode:
            return torch.empty(x.shape, dtype=x.dtype, device=CUDA)


class _Python(TorchFunctionMode):
    """What torch answers in C++, or refuses, without asking ``_Host``."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if args and isinstance(args[0], FakeTensor):
            if func is Tensor.device.__get__:  # type: ignore[attr-defined]
                return args[0].fake_device
            if func is Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
                return args[0].fake_device.type == "cuda"
            if func is Tensor.tolist:
                self.waits.append(place())
                return _on_host(func, args, {})
        return func(*args, **(kwargs or {}))


def _on_host(func: Any, args: Any, kwargs: Any) -> Any:
    """The result with real tensors; the GPU's are made up, and the same for the same shape and type."""
    with unset_fake_temporarily():
        args, kwargs = tree_map_only(FakeTensor, _made_up, (args, kwargs))
        return func(*args, **kwargs)


def _made_up(x: FakeTensor) -> Tensor:
    """Of truth values, an odd number is true: what drops the others, round after round, comes to an end."""
    if x.is_floating_point():
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x.dtype)
    numbers = torch.ones(x.shape, dtype=x.dtype)
    if x.numel() % 2 == 0:
        numbers.flatten()[-1:] = 0
    return numbers


def _indexes_by_mask(func: Any, args: Any) -> bool:
    return func in INDEXING and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1])


def place() -> str:
    """The innermost function of detr/ that is running, as "matcher.py: forward"."""
    frame = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith(str(ROOT / "detr")):
        frame = frame.f_back
    if frame is None:
        return "outside detr/"
    return f"{frame.f_code.co_filename.rpartition('/')[2]}: {frame.f_code.co_name}"
