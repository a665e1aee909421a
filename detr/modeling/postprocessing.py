"""From the network's outputs to Detectron2's structures.

Q  queries
K  classes without no-object
"""

from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert


def box_instances(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Instances:
    """All Q detections of one image: no threshold, no suppression, in the order of the queries.

    logits: (Q, K + 1), the last column no-object
    boxes: (Q, 4) cxcywh in [0, 1] of the image
    size: (height, width) of the output in pixels

    Returns Instances with ``pred_boxes`` xyxy in pixels (not clipped, as in the original), ``scores`` in
    [0, 1] and ``pred_classes`` in [0, K): the best class per query besides no-object (paper, sec. 4).
    """
    height, width = size
    scores, classes = logits.float().softmax(-1)[:, :-1].max(-1)
    scale = boxes.new_tensor([width, height, width, height])
    return Instances(
        (height, width),
        pred_boxes=Boxes(box_convert(boxes, "cxcywh", "xyxy") * scale),
        scores=scores,
        pred_classes=classes,
    )
