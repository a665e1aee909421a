"""What the tensors of a ``Detr`` do not show: read off the model, and compared with what its weights say."""

import logging

from detr.checkpoint.architecture import CheckpointInfo
from detr.modeling.meta_arch import Detr

logger = logging.getLogger(__name__)


def compare(info: CheckpointInfo, model: Detr) -> None:
    """Warns where the weights were trained for a function that has the same tensors and other results."""
    if info.dilation is not None and info.dilation != _is_dilated(model):
        weights, config, value = ("with", "without", 2) if info.dilation else ("without", "with", 1)
        logger.warning(
            f"the weights are of a model {weights} DC5 (dilated res5) and the config is of one {config}: results "
            f"suffer; set MODEL.RESNETS.RES5_DILATION {value}"
        )
    heads = heads_of(model)
    if info.heads is not None and heads is not None and info.heads != heads:
        logger.warning(
            f"the weights were trained with {info.heads} attention heads and the model has {heads}: results mean "
            f"nothing; set MODEL.DETR.NHEADS {info.heads}"
        )


def info_of(model: Detr) -> CheckpointInfo:
    """What the tensors of the model do not show."""
    names, card = class_names(model), model.card
    return CheckpointInfo(_is_dilated(model), heads_of(model), names, card.config or None, card.score_threshold)


def class_names(model: Detr) -> tuple[str, ...] | None:
    """The model's class names, as far as they are as many as its classes."""
    names = model.card.class_names
    return names if names is not None and len(names) == model.num_classes else None


def heads_of(model: Detr) -> int | None:
    return getattr(model.transformer, "heads", None)  # a transformer of the user's own may have none


def _is_dilated(model: Detr) -> bool:
    res5 = getattr(model.backbone, "res5", None)
    return res5 is not None and hasattr(res5[-1], "conv2") and bool(res5[-1].conv2.dilation[0] > 1)
