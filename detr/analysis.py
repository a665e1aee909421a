"""How large a model is: parameters and multiplications of its parts, counted by torch's ``FlopCounterMode``.

The network runs on torch's fake tensors, which have a shape and no data: any size takes seconds and no memory.
A MAC is one multiplication with its addition, in a convolution or a matrix product.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_model
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr.config_checks import check_names
from detr.errors import InputError
from detr.modeling.meta_arch import Detr

# Module name -> part, in the order of execution. The longest name that fits counts.
PARTS = {
    "backbone": "backbone, rest",
    "input_proj": "input projection",
    "position_encoding": "position encoding",
    "transformer.encoder": "encoder",
    "transformer.decoder": "decoder",
    "query_embed": "decoder",
    "class_embed": "heads",
    "bbox_embed": "heads",
    "mask_head": "mask head",
}
OTHER = "other"  # what a subclass adds
MAX_SIDE = 100_000  # pixels


@dataclass
class Part:
    """parameters, and those of them that are trained; macs: of inference on one image"""

    parameters: int = 0
    trainable: int = 0
    macs: int = 0


@dataclass
class Analysis:
    """parts: by name, in the order in which they run
    checkpoint: bytes of the weights in a checkpoint
    training_macs: of a whole training step, forward and backward; losses have none
    """

    parts: dict[str, Part]
    checkpoint: int
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
    """Analyzes the model of ``cfg``, without weights or data.

    size: (height, width) of the images in pixels, all of them alike
    batch: images in the training step
    objects: of each training image, for which the mask head runs
    queries_kept: how many queries' masks inference makes; None for all, as AP needs them

    Raises InputError for a config whose model is no ``Detr``, for numbers that the model does not allow, and for a
    model that cannot run at this size or without data.
    """
    if not all(1 <= x <= MAX_SIDE for x in size):
        raise InputError(f"images of {size[0]} x {size[1]} pixels: each side must be from 1 to {MAX_SIDE}")
    if batch < 1:
        raise InputError(f"a batch of {batch} images: it must have at least 1")
    model = _plain_model(cfg)
    queries = model.query_embed.num_embeddings
    for name, value, least in (("queries kept", queries_kept, 0), ("objects an image", objects, 1)):
        if value is not None and not least <= value <= queries:
            raise InputError(f"{value} {name}: MODEL.DETR.NUM_OBJECT_QUERIES allows {least} to {queries}")
    names = part_names(model)
    parts = {name: Part() for name in (*names.values(), OTHER)}
    for name, parameter in model.named_parameters():
        part = parts[_part_of(name, names)]
        part.parameters += parameter.numel()
        part.trainable += parameter.numel() * parameter.requires_grad
    with _errors_of_model(cfg, size):
        training = _count_flops(model.train(), size, batch, masks=objects)
        model.eval().requires_grad_(False)  # the counter cannot follow trained parameters without a graph
        inference = _count_flops(model, size, 1, masks=queries if queries_kept is None else queries_kept)
    flops = {name: sum(by_operator.values()) for name, by_operator in inference.get_flop_counts().items()}
    parts[OTHER].macs = flops["Global"] // 2  # a multiplication and an addition
    for name, part_name in names.items():
        macs = flops.get(f"{_Network.__name__}.model.{name}", 0) // 2
        parts[part_name].macs += macs
        parts[_part_of(name.rpartition(".")[0], names)].macs -= macs  # a module's count includes those inside it
    return Analysis(
        parts={name: part for name, part in parts.items() if part != Part()},
        checkpoint=sum(x.numel() * x.element_size() for x in model.state_dict().values()),
        training_macs=training.get_total_flops() // 2,
    )


def rough_training_macs(cfg: CfgNode, size: tuple[int, int]) -> int:
    """About the ``training_macs`` of one image with one object, of which only the forward's are counted: it is fast.

    Raises InputError for a config whose model is no ``Detr``, and for a model that cannot run at this size.
    """
    model = _plain_model(cfg).eval().requires_grad_(False)
    with _errors_of_model(cfg, size):
        flops = _count_flops(model, size, 1, masks=1).get_flop_counts()
    total, masks = (sum(flops.get(name, {}).values()) for name in ("Global", f"{_Network.__name__}.model.mask_head"))
    return (total + 2 * (masks if model.freeze_detr else total)) // 2  # backward twice, through what is trained


def _plain_model(cfg: CfgNode) -> Detr:
    """The model that comes out of the training, on the CPU."""
    check_names(cfg)
    if not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), Detr):
        raise InputError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: only Detr can be analyzed")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.DETR.COMPILE = "cpu", ""
    model: Detr = build_model(cfg)
    model.fold_queries()
    return model


@contextlib.contextmanager
def _errors_of_model(cfg: CfgNode, size: tuple[int, int]) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{cfg.MODEL.BACKBONE.NAME} at {size[0]} x {size[1]} cannot be analyzed: {reason}") from error


def part_names(model: Detr) -> dict[str, str]:
    """Module name -> part: ``PARTS``, preceded by the stages of the backbone, each of which is a part of its own."""
    stages: dict[str, str] = {}
    for name, module in model.backbone.named_modules(prefix="backbone"):
        inside = (x for x in module.modules() if x is not module)
        # A feature pyramid contains the backbone whose stages are meant.
        if isinstance(module, Backbone) and not any(isinstance(x, Backbone) for x in inside):
            stages |= {f"{name}.{child}": f"backbone {child}" for child, _ in module.named_children()}
    return stages | PARTS


def _part_of(name: str, names: dict[str, str]) -> str:
    """The part of a module or parameter."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return names.get(name, OTHER)


def _count_flops(model: Detr, size: tuple[int, int], batch: int, *, masks: int) -> FlopCounterMode:
    """Runs the network in the mode that ``model`` is in, in training its backward pass too, and returns the counter.

    size: (height, width) of the images in pixels; batch: their number
    masks: of each image, made by the mask head

    The sum of the outputs stands for the losses, which have no matrix products.
    """
    images = ImageList.from_tensors(
        [torch.empty(len(model.pixel_mean), *size, device="meta")] * batch,
        model.backbone.size_divisibility,
        padding_constraints=model.padding_constraints,
    )
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        sdpa_kernel(SDPBackend.MATH),  # of attention, the counter knows the plain products on every device
        FlopCounterMode(display=False) as counter,
        torch.set_grad_enabled(model.training),
    ):
        outputs = _Network(model)(ImageList(torch.empty(images.tensor.shape), images.image_sizes), masks)
        if model.training:
            torch.stack([x.sum() for x in outputs if x.requires_grad]).sum().backward()
    return counter


class _Network(nn.Module):
    """Calls the network's parts. The counter names modules from the outermost one that is called, which is this one."""

    def __init__(self, model: Detr) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: ImageList, masks: int) -> list[Tensor]:
        model = self.model
        deep = model.training and model.deep_supervision and not model.freeze_detr
        logits, boxes, features = model.forward_network(images, return_intermediate=deep)
        if model.mask_head is None:
            return [logits, boxes]
        image_of = torch.arange(len(images)).repeat_interleave(masks)
        return [logits, boxes, model.mask_head(features, image_of, torch.arange(masks).repeat(len(images)))]
