"""Counts what a model multiplies and keeps, part by part, while it runs.

On the meta device, where tensors have a shape and no data, the largest model at any size takes seconds and no
memory. What is counted is what the operators are given: it does not matter how a module is written.
"""

import contextlib
import functools
import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental import _config as shape_config
from torch.utils.flop_counter import FlopCounterMode

PartOf = Callable[[str], str]  # the name of a module, "" for the whole -> the part that it belongs to


def count_macs(model: nn.Module, part_of: PartOf, run: Callable[[], Any]) -> Counter[str]:
    """The multiply-accumulate operations of ``run()``, by part.

    Counted are convolutions and matrix products, those of attention among them: sums, norms and activations are not.
    """
    macs: Counter[str] = Counter()
    with FlopCounterMode(display=False) as counter:
        settled = 0

        def settle(part: str) -> None:
            nonlocal settled
            total = counter.get_total_flops()
            macs[part] += (total - settled) // 2  # it counts a multiplication and an addition
            settled = total

        with _following(model, part_of, settle) as where:
            run()
            settle(where[-1])
    return macs


def count_kept(model: nn.Module, part_of: PartOf, run: Callable[[], Any]) -> Counter[str]:
    """The bytes that autograd keeps for the backward pass of what ``run()`` returns, by part.

    A storage counts once, for the part that keeps it first; parameters and buffers do not count, nor what was
    kept for results that nobody holds any more.
    """
    held: list[tuple[weakref.ref[_Held], str]] = []
    with _following(model, part_of) as where:

        def pack(tensor: Tensor) -> _Held:
            keeper = _Held(tensor)
            held.append((weakref.ref(keeper), where[-1]))
            return keeper

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda keeper: keeper.tensor), torch.enable_grad():
            result = run()
    kept: Counter[str] = Counter()
    seen = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    for reference, part in held:
        keeper = reference()
        if keeper is None:
            continue
        storage = keeper.tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            kept[part] += storage.nbytes()
    del result  # the graph lives until here
    return kept


class _Held:
    """Lives as long as autograd keeps the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextlib.contextmanager
def _following(
    model: nn.Module, part_of: PartOf, before_change: Callable[[str], None] = lambda part: None
) -> Iterator[list[str]]:
    """Inside, the last entry of the list is the part that runs; ``before_change`` is given it when it is to change.

    A part is entered through any method of its modules, and not by a call of the module alone.
    """
    where = [part_of("")]
    wrapped = []
    for name, module in model.named_modules():
        for method in _methods(module) if name else ():
            setattr(module, method, _entering(getattr(module, method), part_of(name), where, before_change))
            wrapped.append((module, method))
    try:
        yield where
    finally:
        for module, method in wrapped:
            delattr(module, method)


def _methods(module: nn.Module) -> set[str]:
    own = type(module).__mro__[: type(module).__mro__.index(nn.Module)]
    names = {name for cls in own for name, value in vars(cls).items() if inspect.isfunction(value)}
    # Those set on the module itself, as by somebody else's wrapper, would be lost at the end.
    return {name for name in names if not name.startswith("__") and name not in vars(module)}


def _entering(
    method: Callable[..., Any], part: str, where: list[str], before_change: Callable[[str], None]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        before_change(where[-1])
        where.append(part)
        try:
            return method(*args, **kwargs)
        finally:
            before_change(where.pop())

    return call


@contextlib.contextmanager
def meta_like_gpu() -> Iterator[None]:
    """Inside, a model on the meta device runs as it would on a GPU in single precision.

    Left alone, the meta device takes the slow attention, which keeps its weights, and a dropout that keeps floats; it
    has no autocast, even to switch off; and it refuses to index by a mask, which here is taken to be true everywhere.
    """
    with (
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
        mock.patch.object(F, "dropout", _dropout),
        mock.patch.object(torch, "autocast", _no_autocast),
        shape_config.patch(meta_nonzero_assume_all_nonzero=True),  # type: ignore[attr-defined]  # added by torch
    ):
        yield


_slow_attention = F.scaled_dot_product_attention


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    if query.dim() != 4 or options.get("enable_gqa"):
        return _slow_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(query, key, value, attn_mask, True, dropout_p, is_causal, scale=options.get("scale"))[0]


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(input, p, True)[0] if training and p > 0 else input  # keeps one byte an element


def _no_autocast(*args: Any, **kwargs: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
