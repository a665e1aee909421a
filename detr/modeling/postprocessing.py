"""From the network's outputs to Detectron2's structures.

Q  queries
K  classes without no-object
"""

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert

MASKS_AT_ONCE = 10  # a COCO image's mask at the input's size is 4 MB in float32


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


def instance_masks(
    logits: Tensor, padded_size: tuple[int, int], image_size: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Binary masks of one image from their logits, in the original's two steps.

    logits: (Q, h, w), over the padded input
    padded_size, image_size: (height, width) in pixels of the model's input with padding, and without
    size: (height, width) of the output in pixels

    Returns (Q, height, width) bool.
    """
    height, width = image_size
    masks = torch.empty(len(logits), *size, dtype=torch.bool, device=logits.device)
    for chunk, mask in zip(logits.split(MASKS_AT_ONCE), masks.split(MASKS_AT_ONCE), strict=True):
        x = F.interpolate(chunk[:, None].float(), size=padded_size, mode="bilinear", align_corners=False)
        x = F.interpolate(x[..., :height, :width], size=size, mode="nearest")
        # Not x > 0: the sigmoid of a logit between 0 and 1e-7 is rounded to a half.
        mask.copy_((x.sigmoid() > 0.5)[:, 0])
    return masks
