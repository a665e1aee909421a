"""Backbone, transformer and heads as one function of tensors, which torch.compile can compile (MODEL.DETR.COMPILE).

The function is compiled, and the module is not wrapped: names of parameters, hooks, copies and files of the model stay.
Nothing is compiled before the first call. What is replaced or hooked later is compiled anew.
"""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from detr.errors import InputError
from detr.modeling.backbone import sampled_padding
from detr.modeling.outputs import Outputs
from detr.modeling.training_queries import QuerySet

CUDA_GRAPHS = "reduce-overhead"  # the mode of torch.compile that makes them
# Training and evaluation, with and without padding, and each side that turns out to vary are compiled apart. Beyond
# torch's own limit of 8 the rest would run as it is.
VARIANTS = 64


def run_network(
    model: Any, images: Tensor, sizes: Tensor | None, return_intermediate: bool, queries: QuerySet | None
) -> Outputs:
    """The network of a ``Detr``, compiled where its ``compile_mode`` says so; arguments as of ``forward_tensors``.

    Raises InputError where this machine lacks what torch compiles with.
    """
    inputs = (model, images, sizes, return_intermediate, queries)
    # Where a compiler or an exporter is looking, it shall see the network.
    if not model.compile_mode or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return forward_tensors(*inputs)
    from torch._dynamo import config  # takes seconds, of those who compile
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        # With the second setting, hooks count that come after the first call.
        with config.patch(recompile_limit=VARIANTS, skip_nnmodule_hook_guards=False):  # type: ignore[attr-defined]
            outputs = _compiled(model.compile_mode)(*inputs)
    except BackendCompilerFailed as error:
        cause = error.inner_exception
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise InputError(
            f"MODEL.DETR.COMPILE {model.compile_mode}: torch.compile fails here ({reason}). On a CPU it takes a C++ "
            'compiler such as g++, on a GPU Triton and a GPU that Triton supports; MODEL.DETR.COMPILE "" runs without'
        ) from error
    # In training the next call comes after the backward pass, so that nothing needs to be cloned.
    return _own_memory(outputs) if model.compile_mode == CUDA_GRAPHS and not model.training else outputs


def forward_tensors(
    model: Any, images: Tensor, sizes: Tensor | None, return_intermediate: bool, queries: QuerySet | None
) -> Outputs:
    """The network. Sizes of images are a tensor, so that other ones need no other graph.

    images: (N, C, H, W); sizes: (N, 2) height and width of each image without its padding, None where none is padded
    return_intermediate, queries: see ``Detr.forward_network``
    """
    more = () if queries is None else (queries,)
    with torch.set_grad_enabled(torch.is_grad_enabled() and not model.freeze_detr), precision(model):
        features = model.backbone(images)
        mask = None
        if sizes is not None:
            (height, width), (h, w) = images.shape[-2:], features[model.in_feature].shape[-2:]
            mask = sampled_padding(sizes, (height, width), (h, w))
        return model.forward_heads(features, mask, return_intermediate, *more)  # type: ignore[no-any-return]


def precision(model: Any) -> AbstractContextManager[Any]:
    """In which products and convolutions of a ``Detr`` are computed: in training the loop decides."""
    if model.training or model.inference_dtype == torch.float32:
        return nullcontext()
    return torch.autocast(model.device.type, model.inference_dtype)


@functools.cache
def _compiled(mode: str) -> Callable[..., Outputs]:
    return torch.compile(forward_tensors, mode=mode)


def _own_memory(outputs: Outputs) -> Outputs:
    """The same in memory of their own: the next run of a CUDA graph writes over what the last one returned."""
    features = outputs.mask_features
    if features is not None:
        fields = (field.name for field in dataclasses.fields(features))
        features = dataclasses.replace(features, **{name: _clone(getattr(features, name)) for name in fields})
    return outputs._replace(logits=outputs.logits.clone(), boxes=outputs.boxes.clone(), mask_features=features)


def _clone(value: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, value)
