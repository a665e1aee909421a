"""What becomes a graph: the two halves of a ``Detr``, from tensors to tensors.

N  images, H x W their padded size in pixels
Q  object queries, K classes without no-object
M  attention heads, R rows: the queries of one image whose masks are wanted
"""

from dataclasses import dataclass, field

import torch
from detectron2.structures import ImageList
from torch import Tensor, nn

from detr.export.model import MASK_DECODER, NETWORK
from detr.modeling.backbone import sampled_padding
from detr.modeling.mask_head import MaskHead, SharedMaps
from detr.modeling.meta_arch import Detr

EXAMPLE = ((192, 224), (160, 256))  # (height, width): two images, for a batch of one would be taken for a constant
EXAMPLE_ROWS = 4


class Network(nn.Module):
    """All but the masks, and what the masks of an image have in common."""

    def __init__(self, model: Detr) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """images: (N, 3, H, W) float32, normalized and padded; sizes: (N, 2) int64, height and width without padding

        Returns logits (N, Q, K + 1) and boxes (N, Q, 4) of the last layer and, with masks, ``SharedMaps``.
        """
        model = self.model
        features = model.backbone(images)
        height, width = images.shape[-2:]
        h, w = features[model.in_feature].shape[-2:]
        padding = sampled_padding(sizes, (height, width), (h, w))  # a mask even of no padding: a graph has no branches
        outputs = model.forward_heads(features, padding, return_intermediate=False)
        maps: tuple[Tensor, ...] = ()
        if model.mask_head is not None and outputs.mask_features is not None:
            maps = tuple(model.mask_head.share(outputs.mask_features))
        return outputs.logits[-1], outputs.boxes[-1], *maps


class MaskDecoder(nn.Module):
    """From the maps of R rows of one image to their masks."""

    def __init__(self, mask_head: MaskHead) -> None:
        super().__init__()
        self.mask_head = mask_head

    def forward(self, attention: Tensor, first: Tensor, coarse: Tensor, middle: Tensor, fine: Tensor) -> tuple[Tensor]:
        """attention: (R, M, h, w); the others: (1, C_i, H_i, W_i). Returns mask logits (R, H_3, W_3)."""
        return (self.mask_head.decode(attention, first, coarse, middle, fine),)


@dataclass
class Part:
    """A module to be written as a graph.

    example: its inputs, in this order; axes: of each input those that may have any length, by their names
    outputs: their names
    metadata: texts by name that the graph's file holds besides
    """

    name: str
    module: nn.Module
    example: tuple[Tensor, ...]
    axes: dict[str, dict[int, str]]
    outputs: list[str]
    metadata: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def parts(model: Detr) -> list[Part]:
    """The graphs that make up a model, which is in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    batch = random_batch(model, EXAMPLE, generator)
    example = (batch.tensor, torch.tensor(batch.image_sizes, device=batch.device))
    network = Network(model).eval()
    outputs = ["logits", "boxes"]
    axes = {"images": {0: "images", 2: "height", 3: "width"}, "sizes": {0: "images"}}
    if model.mask_head is None:
        return [Part(NETWORK, network, example, axes, outputs)]
    _, _, *maps = network(*example)
    image = SharedMaps(*(x[:1] for x in maps))
    rows = torch.arange(EXAMPLE_ROWS, device=batch.device) % image.attention.shape[1]
    inputs = image.rows(torch.zeros_like(rows), rows)
    fields = SharedMaps._fields
    decoder_axes = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in fields}
    for axis, of in ((2, "height"), (3, "width")):  # both lie over the transformer's feature
        decoder_axes["first"][axis] = decoder_axes["attention"][axis] = of
    decoder_axes["attention"][0] = "rows"
    return [
        Part(NETWORK, network, example, axes, [*outputs, *fields]),
        Part(MASK_DECODER, MaskDecoder(model.mask_head).eval(), inputs, decoder_axes, ["masks"]),
    ]


def random_batch(model: Detr, sizes: tuple[tuple[int, int], ...], generator: torch.Generator) -> ImageList:
    """Normalized images of these sizes in pixels, padded as for the model."""
    images = [torch.randn(len(model.pixel_mean), *size, generator=generator).to(model.device) for size in sizes]
    return ImageList.from_tensors(
        images, model.backbone.size_divisibility, padding_constraints=model.padding_constraints
    )
