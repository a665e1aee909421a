"""Whether detections are the same, whoever made them.

Q  queries
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.timing import require
from detr.checkpoint.rows import COCO_ROWS, coco_rows

REFERENCE = "original"  # the contestant that all others are compared with
# In float32: lively weights amplify rounding, and the authors' own logits are 4e-4 away from those in float64.
BOUNDS = {"scores": 1e-3, "boxes": 1e-3, "other classes": 0.0}


class Found(NamedTuple):
    """Detections of one image in the order of the queries: scores (Q,), COCO ids (Q,), boxes (Q, 4) xyxy in pixels."""

    scores: Tensor
    classes: Tensor
    boxes: Tensor


def found(output: Any, rows: int) -> Found:
    """output: ours, with ``instances``, or a dict as the original and transformers make it; rows: of the class head."""
    if "instances" in output:
        instances = output["instances"]
        ids = coco_rows(COCO_ROWS[rows])
        return Found(instances.scores, ids[instances.pred_classes], instances.pred_boxes.tensor)
    return Found(output["scores"], output["labels"], output["boxes"])


def differences(result: Found, reference: Found, size: tuple[int, int]) -> dict[str, float]:
    """The largest of scores and of boxes as parts of the image, and the share of queries with another class.

    size: (height, width) in pixels
    """
    height, width = size
    scale = torch.tensor([width, height, width, height])
    return {
        "scores": (result.scores.float() - reference.scores).abs().max().item(),
        "boxes": ((result.boxes.float() - reference.boxes).abs() / scale).max().item(),
        "other classes": (result.classes != reference.classes).float().mean().item(),
    }


def check_detections(
    outputs: dict[str, Any],
    size: tuple[int, int],
    rows: int,
    bounds: dict[str, dict[str, float]] | None = None,
) -> str:
    """Everybody's against those of REFERENCE. Raises Disagreement.

    bounds: by name, for those with other bounds than BOUNDS
    """
    reference = found(outputs[REFERENCE], rows)
    phrases = []
    for name, output in outputs.items():
        if name != REFERENCE:
            apart = differences(found(output, rows), reference, size)
            phrases.append(require(name, apart, (bounds or {}).get(name, BOUNDS)))
    return "; ".join(phrases)
