"""The authors' DETR (PyPI `detr==0.1.4`, unpacked in `.oracle/`) as the live oracle of parity tests.

The oracle is run, never read from: everything here rests on its signatures and its behavior.

    model, criterion, postprocessors = lively_original("detr_R_50")
    outputs = run_original(model, [sample_image(224, 288)])

Shapes: Q queries, K classes of the head without no-object, (H, W) pixels, M ground truths of an image.
"""

import functools
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from detr.convert.reference import Original, build, load_original

ORACLE_ROOT = Path(__file__).resolve().parents[2] / ".oracle"
COCO_CLASSES = 91  # the original's heads count COCO category ids: 0..90 for boxes,
PANOPTIC_CLASSES = 250  # 0..249 for panoptic; the row after them is no-object
DROPPED_BIAS = -100.0  # exp() of it vanishes beside lively logits (|logit| < 20) in a float32 softmax
CALIBRATION_IMAGES = 4


@functools.cache
def load_oracle() -> types.SimpleNamespace:
    """All its classes and functions by name, and its modules `box_ops` and `transforms`."""
    if not (ORACLE_ROOT / "models").is_dir():
        raise FileNotFoundError(f"no oracle in {ORACLE_ROOT}: run `make test` (installs the oracle)")
    return load_original(ORACLE_ROOT)


def build_original(name: str, *, num_classes: int = COCO_CLASSES, seed: int = 0, **options: Any) -> Original:
    """The original (model, criterion, postprocessors) with its own random weights, in eval mode.

    `num_classes=250` gives the panoptic variant; `options` override the original's defaults.
    """
    depth, dilation = int(name.removesuffix("_DC5").rpartition("_")[2]), name.endswith("_DC5")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(load_oracle(), depth=depth, dilation=dilation, num_classes=num_classes, **options)


def lively_original(name: str, *, seed: int = 0, **options: Any) -> Original:
    """`build_original`, enlivened."""
    original = build_original(name, seed=seed, **options)
    enliven(original[0], seed)
    return original


def detector(model: Any) -> Any:
    """The DETR inside a model with masks, or the model itself."""
    return getattr(model, "detr", model)


def original_checkpoint(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """A copy of the weights in the layout of the released files."""
    return {"model": {key: value.clone() for key, value in model.state_dict().items()}}


@torch.no_grad()
def enliven(model: Any, seed: int = 0) -> None:
    """Change the weights in place so that every part of the model shows in its outputs.

    Fresh weights give 100 queries that are nearly alike, and one class wins everywhere. Rows of the class
    head that a conversion drops never win afterwards, nor count in the softmax.
    """
    detr, generator = detector(model), torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("query_embed.weight", "row_embed.weight", "col_embed.weight")):
            parameter.normal_(0, 2 if "query" in name else 0.7, generator=generator)
        elif name.endswith("in_proj_weight"):
            # With more, the model turns chaotic: float32 noise alone moves logits by 0.1 instead of 0.001.
            gain = 2.5 if "multihead_attn" in name else 1.5 if "decoder" in name else 1.0
            parameter[: 2 * parameter.shape[1]] *= gain  # rows: d of query, d of key, d of value
        elif name.endswith(("q_linear.weight", "k_linear.weight")):
            parameter *= 3
        elif "adapter" in name and parameter.dim() == 4:
            parameter *= 0.3  # res4, res3 and res2 are the same for all queries
        elif parameter.dim() == 1:  # biases and norms: at 0 and 1, a mix-up would not show
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)

    images = [sample_image(224, 288, seed=1000 + i) for i in range(CALIBRATION_IMAGES)]
    hooks: list[Any] = []
    for name, module in detr.named_modules():
        if hasattr(module, "running_mean"):
            # bn3 ends a residual branch: small, or the sum over 23 blocks of R101 drowns the shortcut
            low, high = (0.1, 0.3) if name.endswith("bn3") else (0.5, 1.5)
            calibrate = functools.partial(_calibrate_batch_norm, low=low, high=high, generator=generator)
            hooks.append(module.register_forward_pre_hook(calibrate))
        elif isinstance(module, nn.LayerNorm) or name == "input_proj":
            hooks.append(module.register_forward_hook(_spread_tokens))
    run_original(detr, images)
    while hooks:
        hooks.pop().remove()

    if detr is not model:
        hooks.append(model.mask_head.lay1.register_forward_pre_hook(_heed_attention))
    outputs = run_original(model, images)
    for hook in hooks:
        hook.remove()
    logits, boxes = outputs["pred_logits"].flatten(0, 1), outputs["pred_boxes"].flatten(0, 1)
    _standardize(detr.class_embed, logits, mean=0.0, std=3.0)
    center_and_size = torch.tensor([0.0, 0.0, -1.0, -1.0])  # sizes about sigmoid(-1) of the image
    _standardize(detr.bbox_embed.layers[-1], boxes.logit(), center_and_size, std=1.0)
    if "pred_masks" in outputs:
        _standardize(model.mask_head.out_lay, outputs["pred_masks"].reshape(-1, 1), mean=0.0, std=3.0)

    dropped = torch.ones_like(detr.class_embed.bias, dtype=torch.bool)
    dropped[kept_rows(detr.class_embed.out_features)] = False
    detr.class_embed.bias[dropped] = DROPPED_BIAS


def _calibrate_batch_norm(
    norm: Any, inputs: tuple[Tensor, ...], *, low: float, high: float, generator: torch.Generator
) -> None:
    """Statistics near those of the input (N, C, H, W), and affine weights away from 1 and 0."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(norm.weight.shape).uniform_(low, high, generator=generator)

    var, mean = torch.var_mean(inputs[0], dim=(0, 2, 3))
    var = var.clamp(min=1e-3 * var.mean().item())  # no channel is blown up
    norm.running_mean.copy_(mean + var.sqrt() * uniform(-0.2, 0.2))
    norm.running_var.copy_(var * uniform(0.7, 1.4))
    norm.weight.copy_(uniform(low, high))
    norm.bias.copy_(uniform(-0.3, 0.3))


def _spread_tokens(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """Take away what all tokens share: with random weights it grows with depth until queries are alike."""
    channel = 1 if output.dim() == 4 else -1  # (N, C, H, W) or (L, N, C)
    tokens = output.movedim(channel, -1).flatten(0, -2)
    if tokens.std(dim=0).mean() < 1e-3:
        return None  # the decoder starts at zero: nothing to spread yet
    _standardize(layer, tokens, mean=tokens.mean(dim=0) * 0.1, std=1.0)
    return layer.forward(*inputs)


def _heed_attention(layer: Any, inputs: tuple[Tensor, ...]) -> None:
    """Weigh the 8 attention maps like the 256 features beside them, or all queries have one mask."""
    std = inputs[0].std(dim=(0, 2, 3))  # (264,) of (N * Q, 264, h, w)
    between_queries = inputs[0].unflatten(0, (CALIBRATION_IMAGES, -1)).std(dim=1).mean(dim=(0, 2, 3))
    attention = between_queries > 1e-6  # the features are the same for all queries of an image
    layer.weight.mul_((torch.where(attention, 16.0, 1.0) / std)[:, None, None])


def _standardize(layer: Any, outputs: Tensor, mean: float | Tensor, std: float) -> None:
    """Change weight and bias so that the layer's `outputs` (N, C) would have had `mean` and `std`."""
    scale = std / outputs.std(dim=0)  # (C,)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - outputs.mean(dim=0)) * scale + mean)


def coco_kept_rows() -> Tensor:
    """(81,): the rows of the original's 92 in Detectron2's order: 80 COCO category ids, no-object."""
    return torch.tensor([c["id"] for c in _coco_categories() if c["isthing"]] + [COCO_CLASSES])


def panoptic_kept_rows() -> Tensor:
    """(134,): the rows of the original's 251 in Detectron2's order: 80 things, 53 stuff, no-object."""
    return torch.tensor([c["id"] for c in _coco_categories()] + [PANOPTIC_CLASSES])


def kept_rows(num_rows: int) -> Tensor:
    """The rows of a class head with `num_rows` (no-object included) that a conversion keeps."""
    known = {COCO_CLASSES + 1: coco_kept_rows, PANOPTIC_CLASSES + 1: panoptic_kept_rows}
    return known[num_rows]() if num_rows in known else torch.arange(num_rows)


def _coco_categories() -> list[dict[str, Any]]:
    """Detectron2's list, in the order of its contiguous ids: things, then stuff."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    return sorted(COCO_CATEGORIES, key=lambda category: not category["isthing"])


def sample_image(height: int, width: int, *, seed: int = 0) -> Tensor:
    """(3, H, W) float: blobs of 32 pixels under fine noise; each channel has mean 0 and std 1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, height // 32 + 2, width // 32 + 2, generator=generator)
    blobs = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)[0]
    image = blobs + 0.3 * torch.randn(3, height, width, generator=generator)
    std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
    return (image - mean) / std


def run_original(model: Any, images: Sequence[Tensor]) -> dict[str, Any]:
    """Run on normalized images (3, H, W), each of its own size; autograd is the caller's choice.

    Returns pred_logits (B, Q, K + 1), pred_boxes (B, Q, 4) cxcywh in [0, 1] of the unpadded image,
    with masks pred_masks (B, Q, h, w) logits at stride 4 of the padded batch, and with aux_loss
    aux_outputs, a list of the same (no masks) for all decoder layers but the last.
    """
    return model(load_oracle().nested_tensor_from_tensor_list(list(images)))


def original_targets(
    labels: Sequence[Sequence[int]],
    boxes: Sequence[Sequence[Sequence[float]] | Tensor],
    masks: Sequence[Tensor] | None = None,
) -> list[dict[str, Tensor]]:
    """One dict an image: labels (M,), boxes (M, 4) cxcywh in [0, 1], masks (M, H, W) bool if given."""
    targets = []
    for i, (image_labels, image_boxes) in enumerate(zip(labels, boxes, strict=True)):
        target = {"image_id": torch.tensor([i]), "labels": torch.as_tensor(image_labels, dtype=torch.int64)}
        target["boxes"] = torch.as_tensor(image_boxes, dtype=torch.float32).reshape(-1, 4)
        if masks is not None:
            target["masks"] = masks[i]
        targets.append(target)
    return targets


def original_test_transform() -> Callable[[Image.Image], Tensor]:
    """RGB PIL image -> normalized (3, H, W), resized 800 / 1333, as the original validates."""
    transform = load_oracle().make_coco_transforms("val")
    return lambda image: transform(image, None)[0]
