"""What modules computed from their tensors, kept for as long as these stay as they are."""

import weakref
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """One result a module. It lies beside the module, not in it: copies and files of a model are without it."""

    def __init__(self) -> None:
        self._entries: weakref.WeakKeyDictionary[nn.Module, _Entry] = weakref.WeakKeyDictionary()

    def recall(
        self, module: nn.Module, sources: tuple[Tensor, ...], compute: Callable[[], Result], also: Any = None
    ) -> Result:
        """What ``compute`` gave ``module`` the last time, if the sources and ``also`` are as they were then.

        A change of a source counts if torch counts it: one through ``.data`` does not. Results carry no gradient.
        While a graph is recorded nothing is remembered.
        """
        if torch.jit.is_tracing() or torch.compiler.is_compiling() or any(map(_is_uncounted, sources)):
            return compute()
        state = (also, *((x.data_ptr(), x._version) for x in sources))
        entry = self._entries.get(module)
        if entry is None or entry.state != state:
            with torch.inference_mode(False), torch.no_grad():  # else a training could not use the result
                entry = _Entry(state, tuple(x.detach() for x in sources), compute())
            self._entries[module] = entry
        return entry.result  # type: ignore[no-any-return]

    def forget(self, module: nn.Module) -> None:
        """Frees what is kept for ``module``."""
        self._entries.pop(module, None)


class _Entry(NamedTuple):
    state: tuple[Any, ...]
    sources: tuple[Tensor, ...]  # held, so that their memory is not given to others, which would look like them
    result: Any


def _is_uncounted(x: Tensor) -> bool:
    """Whether torch does not count the changes of a tensor, or it has no memory of its own."""
    return x.is_inference() or x.is_meta or type(x) not in (Tensor, nn.Parameter)
