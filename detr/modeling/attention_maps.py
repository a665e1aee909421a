"""Where a DETR looks: the weights of its attention (paper, fig. 3 and 6), beside the outputs that it gives anyway.

    N  images, Q object queries, M heads
    h, w  an image's part of the feature map, without padding
    L  chosen layers, P chosen points of an image

The model is called as ever, with its fused attention, which never computes the weights. Hooks keep what enters the
chosen layers, and the weights are computed afterwards, for the wanted rows only: those of all positions would take half
a gigabyte for an encoder layer of a DC5 model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from detr.errors import InputError
from detr.modeling.meta_arch import Detr
from detr.modeling.panoptic import panoptic_queries
from detr.modeling.postprocessing import box_instances

DEFAULT_POINTS = 4  # as many as in the paper's figure 3

Point = tuple[float, float]


@dataclass(frozen=True)
class Attention:
    """Where a DETR looks in one image. All but ``output`` is on the CPU.

    output: what the model returns for the image
    objects: the R kept objects, best first: ``pred_boxes`` xyxy in pixels of the output, ``scores``, ``pred_classes``,
        and ``pred_queries`` in [0, Q), by which they are predicted. Of a panoptic model: of the queries that take part
        in the map, things and stuff
    decoder: (L, M, Q, h, w) float32, where each query looks; over h and w the sum is 1
    encoder: (L, M, P, h, w) float32, where the feature at each point looks, with the same sum
    points: (P, 2), x and y in pixels of the output
    extent: (width, height) that the maps cover from the upper left corner, in pixels of the output: up to a cell more
        than the image
    """

    output: dict[str, Any]
    objects: Instances
    decoder: Tensor
    encoder: Tensor
    points: Tensor
    extent: tuple[float, float]


@torch.no_grad()
def attention(
    model: nn.Module,
    batched_inputs: list[dict[str, Any]],
    *,
    points: Sequence[Sequence[Point]] | None = None,
    threshold: float = 0.5,
    decoder_layers: Sequence[int] = (-1,),
    encoder_layers: Sequence[int] = (-1,),
) -> list[Attention]:
    """Calls a ``Detr`` in evaluation mode, and returns for each image its output and where the model looked.

    batched_inputs: as ``Detr.forward`` takes them
    points: for each image, x and y in pixels of the output (``height`` and ``width`` of the input); by default the
        centers of the best objects, up to 4
    threshold: the least score of an object; a panoptic map has its own
    decoder_layers, encoder_layers: indices as of a list, negative ones from the last. An encoder without layers has no
        maps

    Raises InputError for another model, a model in training mode, a layer that it lacks, and a point outside its image.
    """
    if not isinstance(model, Detr):
        raise InputError(
            f"the attention of {type(model).__name__} cannot be shown, only that of a Detr; of an exported model, name "
            "the checkpoint that it was exported from"
        )
    if model.training:
        raise InputError("attention is shown in evaluation mode, and the model is in training: call model.eval() first")
    transformer = model.transformer
    decoder = _choose(transformer.decoder.layers, "multihead_attn", decoder_layers, "decoder")
    encoder = _choose(transformer.encoder.layers, "self_attn", encoder_layers, "encoder")
    modules = [model.backbone, transformer, model.class_embed, model.bbox_embed, *decoder, *encoder]
    with _recorded(modules) as calls:
        outputs = model(batched_inputs)
    count = len(batched_inputs)
    if len(calls) < len(set(modules)) or len(calls[transformer].args[0]) != count:
        raise InputError(
            f"{type(model).__name__} does not run its transformer once on all {count} images of the batch: show the "
            "attention of one image after the other, of a model that runs it"
        )
    found = []
    for index, (x, output) in enumerate(zip(batched_inputs, outputs, strict=True)):
        objects = _objects(model, calls, index, output, threshold)
        grid = _Grid.of_image(calls[model.backbone], calls[transformer], index, x["image"].shape[-2:], objects)
        if points is None:
            chosen = grid.clip(objects[:DEFAULT_POINTS].pred_boxes.get_centers())
        else:
            chosen = _checked(points[index], objects.image_size)
        positions = grid.positions(chosen)
        found.append(
            Attention(
                output=output,
                objects=objects,
                decoder=_stack([grid.crop(_weights(layer, calls[layer], index)) for layer in decoder]),
                encoder=_stack([grid.crop(_weights(layer, calls[layer], index, positions)) for layer in encoder]),
                points=chosen,
                extent=grid.extent,
            )
        )
    return found


class _Call(NamedTuple):
    """What a module was last called with, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def _recorded(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, _Call]]:
    calls: dict[nn.Module, _Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] = _Call(args, kwargs, output)

    handles = [module.register_forward_hook(record, with_kwargs=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Grid:
    """An image's cells of the feature map. Sizes are (height, width).

    padded: of the batch's feature map, in cells; size: of the image's part of it
    cell: in pixels of the output; image_size: of the output, in pixels
    """

    padded: tuple[int, int]
    size: tuple[int, int]
    cell: tuple[float, float]
    image_size: tuple[int, int]

    @classmethod
    def of_image(
        cls, backbone: _Call, transformer: _Call, index: int, input_size: tuple[int, int], objects: Instances
    ) -> "_Grid":
        features, mask = transformer.args[0], transformer.args[3]
        padded = size = tuple(features.shape[-2:])
        if mask is not None:  # the padding is right and below
            size = int((~mask[index, :, 0]).sum()), int((~mask[index, 0]).sum())
        scale = [shown / pixels for shown, pixels in zip(objects.image_size, input_size, strict=True)]
        pixels = backbone.args[0].shape[-2:]
        cell = pixels[0] / padded[0] * scale[0], pixels[1] / padded[1] * scale[1]
        return cls(padded, size, cell, objects.image_size)

    @property
    def extent(self) -> tuple[float, float]:
        """(width, height)"""
        return self.size[1] * self.cell[1], self.size[0] * self.cell[0]

    def clip(self, points: Tensor) -> Tensor:
        """points: (P, 2), x and y"""
        height, width = self.image_size
        return points.clamp(points.new_zeros(2), points.new_tensor([width, height]))

    def positions(self, points: Tensor) -> Tensor:
        """(P,) positions in the flat feature map, with its padding, of points (P, 2)."""
        columns, rows = (points / points.new_tensor(self.cell[::-1])).long().unbind(1)
        return rows.clamp(max=self.size[0] - 1) * self.padded[1] + columns.clamp(max=self.size[1] - 1)

    def crop(self, weights: Tensor) -> Tensor:
        """(M, R, H * W) -> (M, R, h, w), without the padding."""
        return weights.unflatten(-1, self.padded)[..., : self.size[0], : self.size[1]]


def _weights(module: nn.Module, call: _Call, index: int, rows: Tensor | None = None) -> Tensor:
    """Attention weights (M, R, S) of an image, float32 on the CPU.

    rows: (R,), the positions that are wanted; None for all
    """
    one = slice(index, index + 1)
    # In the precision of the weights: what autocast would round is only looked at.
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    query, key, value = (x[one].to(dtype) for x in call.args[:3])
    if rows is not None:
        query = query[:, rows.to(query.device)]
    mask = call.kwargs.get("key_padding_mask")
    with torch.autocast(query.device.type, enabled=False):
        # Not module(...): it is not called again, as other hooks would see it.
        _, weights = module.forward(
            query,
            key,
            value,
            key_padding_mask=None if mask is None else mask[one],
            need_weights=True,
            average_attn_weights=False,
        )
    return weights[0].float().cpu()  # type: ignore[no-any-return]


def _objects(
    model: Detr, calls: dict[nn.Module, _Call], index: int, output: dict[str, Any], threshold: float
) -> Instances:
    """See ``Attention``."""
    instances = output["instances"]
    if "panoptic_seg" in output:  # its instances have no stuff
        logits, boxes = (calls[head].output[-1, index].float() for head in (model.class_embed, model.bbox_embed))
        panoptic = getattr(model.postprocessor, "panoptic", None)
        queries, _, _ = panoptic_queries(logits, threshold if panoptic is None else panoptic.score_threshold)
        instances = box_instances(logits, boxes.sigmoid(), instances.image_size)[queries]
    elif not instances.has("pred_queries"):
        raise InputError(
            f"the instances of {type(model).__name__} do not tell their queries: keep the field pred_queries that the "
            "Postprocessor of Detr sets"
        )
    else:
        instances = instances[instances.scores >= threshold]
    order = instances.scores.argsort(descending=True, stable=True)
    names = ("pred_boxes", "scores", "pred_classes", "pred_queries")
    fields = {name: instances.get(name)[order].to("cpu") for name in names}
    return Instances(instances.image_size, **fields)


def _choose(layers: nn.ModuleList, name: str, indices: Sequence[int], kind: str) -> list[nn.Module]:
    """The attention of this name in each of the chosen layers."""
    if not len(layers):
        return []
    for index in indices:
        if not -len(layers) <= index < len(layers):
            raise InputError(f"the {kind} has no layer {index}: it has {len(layers)}, numbered from 0")
    return [getattr(layers[index], name) for index in indices]


def _checked(points: Sequence[Point], image_size: tuple[int, int]) -> Tensor:
    """(P, 2)"""
    height, width = image_size
    for x, y in points:
        if not (0 <= x <= width and 0 <= y <= height):
            raise InputError(f"the point {x:g},{y:g} is outside the image, which has {width} x {height} pixels")
    return torch.tensor(points, dtype=torch.float32).reshape(-1, 2)


def _stack(maps: list[Tensor]) -> Tensor:
    return torch.stack(maps) if maps else torch.empty(0, 0, 0, 0, 0)
