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


class ModelOutputs(NamedTuple):
    """Detections of one image in the order of the queries: scores (Q,), COCO ids (Q,), boxes (Q, 4) xyxy in pixels."""

    scores: Tensor
    classes: Tensor
    boxes: Tensor


def found(output: Any, rows: int) -> ModelOutputs:
    """output: ours, with ``instances``, or a dict as the original and transformers make it; rows: of the class head."""
    if "instances" in output:
        instances = output["instances"]
        ids = coco_rows(COCO_ROWS[rows])
        return ModelOutputs(instances.scores, ids[instances.pred_classes], instances.pred_boxes.tensor)
    return ModelOutputs(output["scores"], output["labels"], output["boxes"])


# In bfloat16 lively weights carry single queries anywhere, in transformers as in ours, so that the means are bounded.
# Those between one query and the next are 0.22 and 0.16.
ROUNDED_BOUNDS = {"mean of scores": 0.15, "mean of boxes": 0.1, "other classes": 0.5}


def differences(
    result: ModelOutputs, reference: ModelOutputs, size: tuple[int, int], rounded: bool = False
) -> dict[str, float]:
    """The largest of scores and of boxes as parts of the image, and the share of queries with another class.

    size: (height, width) in pixels; rounded: the means instead of the largest
    """
    height, width = size
    scale = torch.tensor([width, height, width, height])
    scores = (result.scores.float() - reference.scores).abs()
    boxes = (result.boxes.float() - reference.boxes).abs() / scale
    others = (result.classes != reference.classes).float().mean().item()
    if rounded:
        return {"mean of scores": scores.mean().item(), "mean of boxes": boxes.mean().item(), "other classes": others}
    return {"scores": scores.max().item(), "boxes": boxes.max().item(), "other classes": others}


def check_detections(outputs: dict[str, Any], size: tuple[int, int], rows: int, rounded: bool = False) -> str:
    """Everybody's against those of REFERENCE. Raises Disagreement.

    size: (height, width) in pixels; rows: of the original's class head; rounded: whether all others are in bfloat16
    """
    bounds = ROUNDED_BOUNDS if rounded else BOUNDS
    reference = found(outputs[REFERENCE], rows)
    phrases = []
    for name, output in outputs.items():
        if name != REFERENCE:
            phrases.append(require(name, differences(found(output, rows), reference, size, rounded), bounds))
    return "; ".join(phrases)
