"""What the authors' hub returns beside a model with ``return_postprocessor=True``: outputs to boxes or panoptic PNGs.

N  images
Q  queries
C  columns of the class head, the last one no-object
h, w  mask logits, over the padded batch

Sizes are (N, 2) or N pairs: height and width in pixels. The dicts that go in are those of
``HubDetr.original_outputs``.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image
from torch import Tensor, nn

from detr.checkpoint.rows import COCO_ROWS
from detr.modeling.panoptic import panoptic_queries, panoptic_segmentation
from detr.modeling.postprocessing import box_instances

Sizes = Tensor | Sequence[Sequence[int]]


class BoxPostprocessor(nn.Module):
    """Outputs to the boxes of all queries: no threshold, in the order of the queries."""

    @torch.no_grad()
    def forward(self, outputs: dict[str, Tensor], target_sizes: Sizes) -> list[dict[str, Tensor]]:
        """target_sizes: of the images in which the boxes are wanted

        Returns for each image ``scores`` (Q,) in [0, 1], ``labels`` (Q,), with COCO's classes its category ids, and
        ``boxes`` (Q, 4), xyxy in pixels, not clipped.
        """
        results = []
        for logits, boxes, size in zip(
            outputs["pred_logits"], outputs["pred_boxes"], _pairs(target_sizes), strict=True
        ):
            instances = box_instances(logits, boxes.float(), size)
            results.append(
                {
                    "scores": instances.scores,
                    "labels": instances.pred_classes,
                    "boxes": instances.pred_boxes.tensor,
                }
            )
        return results


class PanopticPostprocessor(nn.Module):
    """Outputs to panoptic maps, as COCO's panoptic format has them."""

    def __init__(self, threshold: float = 0.85, min_area: int = 4) -> None:
        """threshold: the score that a query needs to take part; min_area: in pixels, above which a segment is kept"""
        super().__init__()
        self.threshold = threshold
        self.min_area = min_area

    @torch.no_grad()
    def forward(
        self, outputs: dict[str, Tensor], processed_sizes: Sizes, target_sizes: Sizes | None = None
    ) -> list[dict[str, Any]]:
        """processed_sizes: of the images that the model saw, without padding
        target_sizes: of the maps; by default the processed ones

        Returns for each image ``png_string``, a PNG (height, width) whose colors are the segments' ids,
        r + 256 g + 65536 b, and ``segments_info``: "id" from 0, "category_id", "isthing" and "area" in pixels. Own
        classes are all things.
        """
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        is_thing = torch.tensor(things_of(logits.shape[-1]), device=logits.device)
        processed = _pairs(processed_sizes)
        # The original stretches each mask to its own image, padding included; the batch was padded to the largest.
        padded_size = max(height for height, _ in processed), max(width for _, width in processed)
        results = []
        for index, (image_size, size) in enumerate(
            zip(processed, processed if target_sizes is None else _pairs(target_sizes), strict=True)
        ):
            queries, labels, scores = panoptic_queries(logits[index], self.threshold)
            ids, segments = panoptic_segmentation(
                masks[index, queries],
                labels,
                scores,
                padded_size=padded_size,
                image_size=image_size,
                size=size,
                is_thing=is_thing,
                min_area=self.min_area,
                stuff_merge="original",
            )
            results.append(
                {
                    "png_string": _png((ids - 1).clamp(min=0).cpu().numpy()),  # Detectron2 counts from 1, 0 is void
                    "segments_info": [
                        {"id": x["id"] - 1, **{key: x[key] for key in ("category_id", "isthing", "area")}}
                        for x in segments
                    ],
                }
            )
        return results


def things_of(columns: int) -> list[bool]:
    """For each column but no-object whether it is a thing: by COCO's categories where the columns count their ids."""
    if columns not in COCO_ROWS:
        return [True] * (columns - 1)
    things = {int(str(category["id"])) for category in COCO_CATEGORIES if category["isthing"]}
    return [index in things for index in range(columns - 1)]


def _pairs(sizes: Sizes) -> list[tuple[int, int]]:
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(height), int(width)) for height, width in rows]


def _png(ids: "np.ndarray[Any, Any]") -> bytes:
    """ids: (height, width) integers below 2 ** 24"""
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    file = io.BytesIO()
    Image.fromarray(colors.astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()
