"""How large a model of a config is: parameters, multiplications and memory of training, by part.

h, w  the feature map that the transformer reads, S = h w
Q     object queries, d width of the transformer
MAC   one multiplication with its addition
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn

from detr.config import check_names
from detr.dry_run import count_kept, count_macs, meta_like_gpu
from detr.errors import InputError
from detr.modeling.matcher import Matches, Targets
from detr.modeling.meta_arch import Detr
from detr.modeling.postprocessing import Postprocessor

# By the names of checkpoints; the longest that fits counts, and what fits none is "other". In order of execution.
PARTS = {
    "backbone": "backbone, rest",
    "input_proj": "input projection",
    "position_encoding": "position encoding",
    "transformer.encoder": "encoder",
    "transformer": "decoder",
    "query_embed": "decoder",
    "class_embed": "heads",
    "bbox_embed": "heads",
    "mask_head": "mask head",
    "criterion": "losses",
}
MAX_SIDE = 100_000  # pixels


@dataclass
class Part:
    """parameters, and those of them that are trained
    macs: of inference, as it runs
    macs_fvcore: of inference, as fvcore counts the authors' code (see ``fvcore_macs``)
    kept: bytes that a training step keeps for its backward pass
    """

    parameters: int = 0
    trainable: int = 0
    macs: int = 0
    macs_fvcore: int = 0
    kept: int = 0


@dataclass
class Analysis:
    """parts: by name, in the order in which they run; checkpoint: bytes of the weights in a checkpoint;
    unseen_macs: those of the authors' code that fvcore does not see; training_macs: of a whole training step, forward
    and backward"""

    parts: dict[str, Part]
    checkpoint: int
    unseen_macs: int
    training_macs: int

    @property
    def total(self) -> Part:
        return Part(*(sum(getattr(part, field.name) for part in self.parts.values()) for field in fields(Part)))


def analyze(
    cfg: CfgNode,
    *,
    size: tuple[int, int] = (800, 1066),
    batch: int = 1,
    objects: int = 10,
    queries_kept: int | None = None,
) -> Analysis:
    """Analyzes the model of ``cfg`` without weights, data or the memory that a forward pass takes.

    size: (height, width) of the images in pixels, all of them alike
    batch: images in the training step; MACs are those of one image
    objects: of each training image, whose masks are kept for the backward pass
    queries_kept: how many queries' masks inference makes; None for all, as AP wants them

    Memory is that of single precision on a GPU. Raises InputError for a config that gives no ``Detr``, and for
    one whose model cannot run at this size or without data.
    """
    if not all(1 <= x <= MAX_SIDE for x in size):
        raise InputError(f"images of {size[0]} x {size[1]} pixels: each side must be from 1 to {MAX_SIDE}")
    check_names(cfg)
    if not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), Detr):
        raise InputError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: only Detr can be analyzed")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"  # some backbones compute while they are built
    model = build_model(cfg)
    queries = model.query_embed.num_embeddings
    for name, value, least in (("queries kept", queries_kept, 0), ("objects an image", objects, 1)):
        if value is not None and not least <= value <= queries:
            raise InputError(f"{value} {name}: MODEL.DETR.NUM_OBJECT_QUERIES allows {least} to {queries}")
    if batch < 1:
        raise InputError(f"a batch of {batch} images: it must have at least 1")
    try:
        return _analyze(model.to("meta"), size, batch, objects, queries if queries_kept is None else queries_kept)
    except (NotImplementedError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{cfg.MODEL.BACKBONE.NAME} at {size[0]} x {size[1]} cannot be analyzed: {reason}") from error


def _analyze(model: Detr, size: tuple[int, int], batch: int, objects: int, queries_kept: int) -> Analysis:
    part_of = part_names(model)
    stages = [part_of(name) for name, _ in model.backbone.named_modules(prefix="backbone")]
    order = [*(x for x in stages if x not in PARTS.values()), *PARTS.values(), part_of("")]
    parts = {name: Part() for name in order}
    for name, parameter in model.named_parameters():
        part = parts[part_of(name)]
        part.parameters += parameter.numel()
        part.trainable += parameter.numel() * parameter.requires_grad

    # Matching and postprocessing go by values, and there are none.
    model.criterion.register_module("matcher", _FirstQueries())
    model.register_module("postprocessor", _MasksAlone(queries_kept))
    maps: dict[str, torch.Size] = {}
    hook = model.backbone.register_forward_hook(lambda _, __, out: maps.update({k: v.shape for k, v in out.items()}))
    with meta_like_gpu():
        inputs = [training_input(size, objects) for _ in range(batch)]
        kept = count_kept(model.train(), part_of, lambda: model(inputs))
        training = count_macs(model, part_of, lambda: sum(model(inputs).values()).backward())
        model.eval().requires_grad_(False)  # torch's counter cannot follow parameters under no_grad
        macs = count_macs(model, part_of, lambda: model(inputs[:1]))
        hook.remove()
    by_fvcore, unseen = fvcore_macs(model, macs, maps)
    for name, part in parts.items():
        part.macs, part.macs_fvcore, part.kept = macs[name], by_fvcore.get(name, 0), kept[name]
    return Analysis(
        parts={name: part for name, part in parts.items() if part != Part()},
        checkpoint=sum(x.numel() * x.element_size() for x in model.state_dict().values()),
        unseen_macs=unseen,
        training_macs=training.total(),
    )


def part_names(model: nn.Module) -> Callable[[str], str]:
    """The part of a module or a parameter by its name; a backbone's stages are parts of their own."""
    parts = dict(PARTS)
    for name, module in model.named_modules():
        inside = (x for x in module.modules() if x is not module)
        # A pyramid has the backbone below it inside, whose stages are meant.
        if isinstance(module, Backbone) and not any(isinstance(x, Backbone) for x in inside):
            parts |= {f"{name}.{child}": f"backbone {child}" for child, _ in module.named_children()}

    def part_of(name: str) -> str:
        while name and name not in parts:
            name = name.rpartition(".")[0]
        return parts.get(name, "other")

    return part_of


def fvcore_macs(model: Detr, macs: dict[str, int], maps: dict[str, torch.Size]) -> tuple[dict[str, int], int]:
    """MACs of one image by part as fvcore counts those of the authors' code, and the number that it does not see.

    macs: as they run, by part; maps: the shapes (1, C, H, W) of the backbone's features

    Two things differ from what runs here. The authors' mask head repeats for each query what depends on the image
    alone. And their attention over the image always has a padding mask, with which torch multiplies queries and
    keys by ``baddbmm``: fvcore does not know that operator. Left out are its guesses for norms and upsampling, and the
    heads on earlier decoder layers, together about half a percent.
    """
    pixels = {name: math.prod(shape[-2:]) for name, shape in maps.items()}
    s, d, q = pixels[model.in_feature], model.input_proj.out_channels, model.query_embed.num_embeddings
    unseen = {
        "encoder": len(model.transformer.encoder.layers) * s * s * d,
        "decoder": len(model.transformer.decoder.layers) * q * s * d,
    }
    counted = {name: value - unseen.get(name, 0) for name, value in macs.items()}
    if model.mask_head is not None:
        counted["mask head"] = _repeating_mask_head(model.mask_head, s, [pixels[x] for x in model.pyramid], d, q)
    return counted, sum(unseen.values())


def _repeating_mask_head(head: nn.Module, s: int, pyramid: list[int], d: int, q: int) -> int:
    """MACs of the mask head on one image where every query's mask is made for itself; s, pyramid: in pixels."""
    weights = {name: x.numel() for name, x in head.named_parameters()}
    coarse, middle, fine = pyramid
    query_layers = {"lay1": s, "lay2": s, "lay3": coarse, "lay4": middle, "lay5": fine, "out_lay": fine}
    image_layers = {"adapter1": coarse, "adapter2": middle, "adapter3": fine, "attention.k_linear": s}
    per_query = sum(weights[f"{name}.weight"] * at for name, at in query_layers.items())
    per_query += weights["attention.q_linear.weight"] + d * s
    return q * per_query + sum(weights[f"{name}.weight"] * at for name, at in image_layers.items())


def training_input(size: tuple[int, int], objects: int, device: str = "meta") -> dict[str, Any]:
    """An input of ``Detr`` without values; size: (height, width) in pixels."""
    truth = Instances(size)
    truth.gt_boxes = Boxes(torch.zeros(objects, 4, device=device))
    truth.gt_classes = torch.zeros(objects, dtype=torch.int64, device=device)
    truth.gt_masks = BitMasks(torch.zeros(objects, *size, dtype=torch.bool, device=device))
    return {"image": torch.zeros(3, *size, dtype=torch.uint8, device=device), "instances": truth}


class _FirstQueries(nn.Module):
    """In the matcher's place: an image's objects go to its first queries."""

    def forward(self, logits: Tensor, boxes: Tensor, targets: Targets) -> Matches:
        pairs = []
        for layer in range(len(logits)):
            target = 0
            for image, size in enumerate(targets.sizes):
                pairs += [(layer, image, query, target + query) for query in range(size)]
                target += size
        return Matches(*torch.tensor(pairs, dtype=torch.int64, device=logits.device).view(-1, 4).unbind(1))


class _MasksAlone(Postprocessor):
    """In the postprocessor's place: asks for the masks of so many queries, and does nothing with them."""

    def __init__(self, queries: int) -> None:
        super().__init__(is_thing=[True])
        self.queries = queries

    def forward(
        self, logits: Tensor, boxes: Tensor, predict_masks: Callable[[Tensor], Tensor] | None, **sizes: Any
    ) -> dict[str, Any]:
        return (
            {} if predict_masks is None else {"masks": predict_masks(torch.arange(self.queries, device=logits.device))}
        )
