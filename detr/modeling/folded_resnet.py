"""Detectron2's ResNet with its frozen batch norms folded into the convolutions: the same function in less time.

A frozen norm is a scale and a shift of each channel, so that it becomes part of its convolution's weight and bias.
Where no gradient is wanted on a CPU, ReLU and the residual sum join the convolution too, through the oneDNN
operators that torch's own compiler uses. Parameters, buffers and their names stay: a checkpoint knows nothing of this.

    N  images, C channels, H x W their size at the layer in question
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import Backbone, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def fold_frozen_norms(backbone: Backbone) -> None:
    """Makes every ResNet inside ``backbone`` a folded one, in place, where its norms are frozen.

    Blocks of other kinds, as deformable ones, and other norms stay as they are.
    """
    for resnet in backbone.modules():
        if isinstance(resnet, ResNet):
            _fold(resnet.stem)
            for stage in resnet.stages:
                folded = [_fold(block) for block in stage]
                if all(folded) and type(stage) is nn.Sequential:
                    stage.__class__ = FoldedStage
            resnet.to(memory_format=torch.channels_last)  # what oneDNN and cuDNN like best


def checkpoint_blocks(backbone: Backbone) -> bool:
    """Lets folded blocks compute their insides again for the gradient; whether there are any."""
    blocks = [module for module in backbone.modules() if isinstance(module, _Folded)]
    for block in blocks:
        block.checkpointed = True
    return bool(blocks)


def _fold(block: nn.Module) -> bool:
    convolutions = [child for child in block.children() if isinstance(child, nn.Conv2d)]
    if type(block) not in _FOLDED or not all(_is_foldable(conv) for conv in convolutions):
        return False
    for conv in convolutions:
        conv.__class__ = FoldedConv
    block.__class__ = _FOLDED[type(block)]
    return True


def _is_foldable(conv: nn.Conv2d) -> bool:
    plain = type(conv) is Conv2d and conv.bias is None and conv.activation is None and conv.padding_mode == "zeros"
    return plain and type(conv.norm) is FrozenBatchNorm2d


class FoldedConv(Conv2d):
    """A convolution with the frozen batch norm behind it: conv(x, w * scale) + shift."""

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What the norm does to a channel, (C,) each."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return scale, norm.bias - norm.running_mean * scale

    def folded(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias of the one convolution."""
        scale, shift = self.scale_and_shift()
        return (self.weight * scale[:, None, None, None]).to(dtype), shift.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C_in, H, W). Returns the norm's output (N, C, H', W')."""
        if _is_watched() or _has_hooks(self.norm):
            return super().forward(x)  # type: ignore[no-any-return]
        x = x.to(_compute_dtype(x))
        if torch.is_grad_enabled() and self.weight.requires_grad:
            scale, shift = self.scale_and_shift()
            geometry = (self.stride, self.padding, self.dilation, self.groups)
            return _ScaledConvolution.apply(x, self.weight, scale, shift, geometry)  # type: ignore[no-any-return]
        return F.conv2d(x, *self.folded(x.dtype), self.stride, self.padding, self.dilation, self.groups)


class _ScaledConvolution(torch.autograd.Function):
    """conv(x, w * scale) + shift, of which x and w alone are kept for the gradient, and not their product."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, geometry: Any) -> Tensor:
        return F.conv2d(x, (weight * scale[:, None, None, None]).to(x.dtype), shift.to(x.dtype), *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scale, _, ctx.geometry = inputs
        ctx.save_for_backward(x, weight, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_x, of_weight = ctx.needs_input_grad[:2]
        scale = scale[:, None, None, None]
        folded = (weight * scale).to(x.dtype)
        geometry = (stride, padding, dilation, False, (0, 0), groups)  # not transposed
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, folded, None, *geometry, (of_x, of_weight, False)
        )
        return grad_x, grad_weight.to(weight.dtype) * scale if of_weight else None, None, None, None


class _Folded:
    """What the folded blocks share."""

    # Whether the block's insides are computed again for the gradient instead of being kept.
    checkpointed = False

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """overwrite: whether the block may write over x, because nobody else holds it."""
        if _is_fusible(self, x):  # type: ignore[arg-type]
            with torch.no_grad():
                return self.fused(x, overwrite)
        plain = super().forward  # type: ignore[misc]
        if self.checkpointed and torch.is_grad_enabled():
            return checkpoint(plain, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]
        return plain(x)  # type: ignore[no-any-return]

    def fused(self, x: Tensor, overwrite: bool) -> Tensor:
        raise NotImplementedError


class FoldedStem(_Folded, BasicStem):
    def fused(self, x: Tensor, overwrite: bool) -> Tensor:
        return F.max_pool2d(_convolve(self.conv1, x, relu=True), kernel_size=3, stride=2, padding=1)


class FoldedBasicBlock(_Folded, BasicBlock):
    def fused(self, x: Tensor, overwrite: bool) -> Tensor:
        return _add(self, self.conv2, _convolve(self.conv1, x, relu=True), x, overwrite)


class FoldedBottleneck(_Folded, BottleneckBlock):
    def fused(self, x: Tensor, overwrite: bool) -> Tensor:
        inner = _convolve(self.conv2, _convolve(self.conv1, x, relu=True), relu=True)
        return _add(self, self.conv3, inner, x, overwrite)


_FOLDED: dict[type[nn.Module], type[nn.Module]] = {
    BasicStem: FoldedStem,
    BasicBlock: FoldedBasicBlock,
    BottleneckBlock: FoldedBottleneck,
}


class FoldedStage(nn.Sequential):
    """The blocks of a stage: what one of them returns, the next one alone reads, and may write over."""

    def forward(self, x: Tensor) -> Tensor:
        # Hooks may keep what they are shown.
        watched = _is_watched() or any(map(_has_hooks, self))
        for i, block in enumerate(self):
            x = block(x, overwrite=i > 0 and not watched)
        return x


def _convolve(conv: FoldedConv, x: Tensor, relu: bool) -> Tensor:
    x = x.to(_compute_dtype(x))
    weight, bias = conv.folded(x.dtype)
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
        x, weight, bias, *geometry, "relu" if relu else "none", [], ""
    )


def _add(block: Any, conv: FoldedConv, inner: Tensor, x: Tensor, overwrite: bool) -> Tensor:
    """relu(conv(inner) + shortcut(x)), written over the shortcut: no further map is allocated."""
    if block.shortcut is not None:
        onto = _convolve(block.shortcut, x, relu=False)
    else:
        onto = x if overwrite else x.clone()
        onto = onto.to(inner.dtype)
    weight, bias = conv.folded(inner.dtype)
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
        onto, inner, weight, bias, *geometry, "add", 1.0, "relu", [], ""
    )


def _is_fusible(block: nn.Module, x: Tensor) -> bool:
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu":
        return False
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in block.parameters())):
        return False
    # Whoever hooks a convolution wants to see it run.
    return (
        x.numel() > 0
        and _has_kernel(_compute_dtype(x))
        and not _is_watched()
        and not any(map(_has_hooks, _insides(block)))
    )


def _insides(block: nn.Module) -> Iterator[nn.Module]:
    return (module for module in block.modules() if module is not block)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _is_watched() -> bool:
    """Whether there are hooks on all modules."""
    return bool(torch.nn.modules.module._global_forward_hooks or torch.nn.modules.module._global_forward_pre_hooks)


def _has_kernel(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _compute_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
