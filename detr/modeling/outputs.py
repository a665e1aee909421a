"""What the network predicts.

L  decoder layers, N images, Q object queries, K classes without no-object
R  queries of a training step (see ``training_queries``)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from detr.modeling.mask_head import MaskFeatures
from detr.modeling.training_queries import QuerySet


class Outputs(NamedTuple):
    """What the network predicts for N images.

    logits: (L, N, Q, K + 1), the last column no-object; L = 1 where only the last decoder layer was asked for
    boxes: (L, N, Q, 4) cxcywh in [0, 1] of the unpadded image
    mask_features: the mask head's input; None in a model without masks
    """

    logits: Tensor
    boxes: Tensor
    mask_features: MaskFeatures | None


class TrainingOutputs(Outputs):
    """The same of a training step with other queries besides: the three fields are those of the object queries.

    all_logits: (L, N, R, K + 1); all_boxes: (L, N, R, 4), of all ``queries``
    """

    all_logits: Tensor
    all_boxes: Tensor
    queries: QuerySet

    @classmethod
    def of_all(
        cls, logits: Tensor, boxes: Tensor, mask_features: MaskFeatures | None, queries: QuerySet
    ) -> "TrainingOutputs":
        """logits: (L, N, R, K + 1); boxes: (L, N, R, 4)"""
        kept = slice(queries.num_objects // queries.groups)
        outputs = cls(logits[:, :, kept], boxes[:, :, kept], mask_features)
        outputs.all_logits, outputs.all_boxes, outputs.queries = logits, boxes, queries
        return outputs

    def _replace(self, **fields: Any) -> "TrainingOutputs":
        """As of any named tuple; what is new of the object queries is new among all queries too."""
        outputs = super()._replace(**fields)
        others = slice(outputs.logits.shape[2], None)
        outputs.all_logits = torch.cat([outputs.logits, self.all_logits[:, :, others]], dim=2)
        outputs.all_boxes = torch.cat([outputs.boxes, self.all_boxes[:, :, others]], dim=2)
        outputs.queries = self.queries
        return outputs
