"""A make-believe accelerator: tensors that claim to be on a device, and a record of what is brought to the host.

Values live on the CPU, so that everything is computed for real; but whoever wants a number of a far tensor, or a
shape that depends on its values, must wait for the device, and is recorded. A copy with ``non_blocking`` goes on in the
background; whoever reads it has to know when it has arrived.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
WAITING = {
    *(aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default),
    *(aten._unique2.default, aten.equal.default, aten.is_nonzero.default),
}
FAR = torch.device("cuda")


class FarTensor(Tensor):
    """Wraps a CPU tensor and says that it is on ``FAR``."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> "FarTensor":
        far = Tensor._make_wrapper_subclass(
            cls, near.shape, strides=near.stride(), dtype=near.dtype, device="meta", requires_grad=near.requires_grad
        )
        far.near = near
        return far

    @property
    def device(self) -> torch.device:
        return FAR

    def __repr__(self) -> str:
        return f"FarTensor({self.near!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called outside of `recording`")


@contextlib.contextmanager
def recording() -> Iterator[list[str]]:
    """Inside, far tensors can be computed with; the list names the operators that waited for the device."""
    waits: list[str] = []
    with _Computing(waits), _Placing(waits):
        yield waits


class _Computing(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        far = any(isinstance(x, FarTensor) for x in tree_leaves((args, kwargs)))
        if far and (func in WAITING or _indexes_by_mask(func, args)):
            self.waits.append(str(func))
        if far and kwargs.get("device") == torch.device("cpu"):
            if not kwargs.get("non_blocking"):
                self.waits.append(str(func))
            far = False
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_near, args), **tree_map(_near, kwargs))
        return tree_map(lambda x: FarTensor(x) if isinstance(x, Tensor) else x, result) if far else result


class _Placing(TorchFunctionMode):
    """Whatever is put or made on ``FAR``, without torch asking for the device."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.tolist and isinstance(args[0], FarTensor):  # torch refuses it for subclasses
            self.waits.append("tolist")
            return args[0].near.tolist()
        if kwargs.get("device") != FAR and FAR not in [x for x in args if isinstance(x, torch.device)]:
            return func(*args, **kwargs)
        is_far = bool(args) and isinstance(args[0], FarTensor)
        kwargs.pop("device", None)
        args = [x for x in args if not (isinstance(x, torch.device) and x == FAR)]
        if is_far and func is Tensor.to:
            return args[0] if not args[1:] and not kwargs.keys() - {"non_blocking"} else func(*args, **kwargs)
        if func is Tensor.to:
            kwargs["copy"] = True
        result = func(*args, **kwargs)
        return result if isinstance(result, FarTensor) else FarTensor(result)


def _near(x: Any) -> Any:
    return x.near if isinstance(x, FarTensor) else x


def _indexes_by_mask(func: Any, args: Any) -> bool:
    if func not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return False
    return any(x is not None and x.dtype == torch.bool for x in args[1])
