"""What an exported model says of itself besides its graph: class names, thresholds and preprocessing."""

import json
from typing import Any

from detectron2.config import CfgNode

from detr.checkpoint.model_info import class_names
from detr.modeling.meta_arch import Detr

KEYS = ("class_names", "is_thing", "score_threshold", "preprocessing")


def make_metadata(model: Detr, cfg: CfgNode) -> dict[str, Any]:
    """Plain values by ``KEYS``.

    class_names: of the K classes; None if they are unknown
    is_thing: for each of the K classes; stuff has no boxes
    score_threshold: instances of a lower score are not worth showing; None if nobody has chosen one
    preprocessing: ``channels`` as INPUT.FORMAT; ``min_size`` and ``max_size``, the bounds in pixels that the shorter
        and the longer side of an image are resized to (0 x any: it keeps its size); ``mean`` and ``std`` of the
        channels in 0..1; ``multiple``, a number that the padded sides are divisible by; ``square_size``, to which both
        are padded if it is not 0
    """
    names, constraints = class_names(model), model.padding_constraints
    return {
        "class_names": None if names is None else list(names),
        "is_thing": model.postprocessor.is_thing.tolist(),
        "score_threshold": model.card.score_threshold,
        "preprocessing": {
            "channels": cfg.INPUT.FORMAT,
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "mean": [value / 255 for value in cfg.MODEL.PIXEL_MEAN],
            "std": [value / 255 for value in cfg.MODEL.PIXEL_STD],
            "multiple": max(constraints.get("size_divisibility", model.backbone.size_divisibility), 1),
            "square_size": constraints.get("square_size", 0),
        },
    }


def as_texts(metadata: dict[str, Any]) -> dict[str, str]:
    """Each value as JSON, since graphs hold texts by name."""
    return {key: json.dumps(value) for key, value in metadata.items()}
