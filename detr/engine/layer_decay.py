"""Learning rates that fall from layer to layer of a backbone towards its input (as in BEiT, arXiv 2106.08254)."""

from collections.abc import Iterator

from detectron2.modeling import MViT, ViT
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from torch import nn

from detr.errors import InputError
from detr.modeling.timm_backbone import TimmBackbone
from detr.modeling.timm_models import number_layers


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """The factor of each of the backbone's parameters, by its name in the model.

    The last layer's is ``decay``, that of the one before ``decay`` squared, and so on. Layers are counted by the
    backbone's library: Detectron2's for its ViT and MViT, timm's for its transformers.

    Raises InputError for a decay outside (0, 1], and for a backbone whose layers neither of them counts.
    """
    if not 0 < decay <= 1:
        raise InputError(f"SOLVER.LAYER_DECAY is {decay}: it must be above 0 and at most 1, which is off")
    scales: dict[str, float] = {}
    for name, module in model.named_modules():
        if ".backbone." in f".{name}.":
            scales |= {f"{name}.{key}": scale for key, scale in _scales(module, decay)}
    if not scales:
        raise InputError(
            f"SOLVER.LAYER_DECAY is {decay}, but this backbone has no layers that Detectron2 or timm would count: it "
            "is for Detectron2's ViT and MViT, and for timm's vision transformers; set it to 1"
        )
    return scales


def _scales(module: nn.Module, decay: float) -> Iterator[tuple[str, float]]:
    if isinstance(module, (ViT, MViT)):
        for name, _ in module.named_parameters():
            yield name, get_vit_lr_decay_rate(f"backbone.{name}", decay, num_layers=len(module.blocks))
    elif isinstance(module, TimmBackbone):
        layers = number_layers(module.body)
        for name, layer in layers.items():
            yield f"body.{name}", decay ** (max(layers.values()) + 1 - layer)
