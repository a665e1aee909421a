"""From the network's outputs of one image to Detectron2's structures, at output size.

    Q  object queries, K classes without no-object
    h, w  mask logits, over the padded input of the model

Sizes are (height, width) in pixels: ``padded_size`` of the model's input with padding, ``image_size`` without,
``size`` of the output.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from detr.errors import InputError
from detr.modeling.panoptic import masks_at_once, panoptic_queries, panoptic_segmentation

Size = tuple[int, int]
LEAST_LOGIT = 1.5 * 2**-24  # of a mask's pixel; not 0: in float32, the sigmoid of a smaller one is rounded to a half


@dataclass(frozen=True)
class PanopticSettings:
    """score_threshold of a query to take part; min_area in pixels, above which a segment is kept;
    stuff_merge: "original" or "exact" (see ``panoptic_segmentation``)."""

    score_threshold: float = 0.85
    min_area: int = 4
    stuff_merge: str = "original"


class Postprocessor(nn.Module):
    """Turns the network's outputs into instances and panoptic maps."""

    is_thing: Tensor

    def __init__(
        self,
        *,
        is_thing: list[bool],
        score_threshold: float = 0.0,
        max_detections: int | None = None,
        panoptic: PanopticSettings | None = None,
    ) -> None:
        """is_thing: for each of the K classes; stuff is no instance
        score_threshold: instances of a lower score are left out, and their masks are not computed
        max_detections: the instances of an image that are kept, those of highest score; None or, as in
            Detectron2, -1 for all
        panoptic: None for no panoptic map
        """
        super().__init__()
        self.max_detections = max_detections
        self.has_stuff = not all(is_thing)
        self.score_threshold = score_threshold
        self.panoptic = panoptic
        self.register_buffer("is_thing", torch.tensor(is_thing), persistent=False)

    def forward(
        self,
        logits: Tensor,
        boxes: Tensor,
        predict_masks: Callable[[Tensor], Tensor] | None,
        *,
        padded_size: Size,
        image_size: Size,
        size: Size,
    ) -> dict[str, Any]:
        """logits: (Q, K + 1); boxes: (Q, 4) cxcywh in [0, 1]

        predict_masks: queries (R,) -> their mask logits (R, h, w); None in a model without masks. It is called
        once, for the queries that count.

        Returns ``instances`` (see ``box_instances``; with ``pred_masks`` (I, height, width) bool where there are
        masks), and where it is enabled ``panoptic_seg`` (see ``panoptic_segmentation``).
        """
        instances = box_instances(logits, boxes, size)
        chosen = self._choose(instances)
        if predict_masks is None:
            return {"instances": instances if chosen is None else instances[chosen]}
        if chosen is None:
            chosen = torch.arange(len(logits), device=logits.device)
        wanted = chosen
        if self.panoptic is not None:
            queries, labels, scores = panoptic_queries(logits, self.panoptic.score_threshold)
            counts = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
            wanted = counts.index_fill_(0, torch.cat([chosen, queries]), True).nonzero().squeeze(1)
        mask_logits = predict_masks(wanted)  # both kinds of queries are ascending
        sizes = {"padded_size": padded_size, "image_size": image_size, "size": size}
        results: dict[str, Any] = {}
        if self.panoptic is not None:
            results["panoptic_seg"] = panoptic_segmentation(
                mask_logits[torch.searchsorted(wanted, queries)],
                labels,
                scores,
                is_thing=self.is_thing,
                min_area=self.panoptic.min_area,
                stuff_merge=self.panoptic.stuff_merge,
                **sizes,
            )
        instances = instances[chosen]
        instances.pred_masks = instance_masks(mask_logits[torch.searchsorted(wanted, chosen)], **sizes)
        return {"instances": instances, **results}

    def _choose(self, instances: Instances) -> Tensor | None:
        """(I,) int64, ascending: which of an image's Q instances are kept; None for all of them."""
        scores = instances.scores
        limited = self.max_detections is not None and 0 <= self.max_detections < len(scores)
        if not (self.has_stuff or self.score_threshold > 0 or limited):
            return None
        chosen = scores >= self.score_threshold
        if self.has_stuff:
            chosen &= self.is_thing[instances.pred_classes]
        if limited:
            order = scores.masked_fill(~chosen, -1).argsort(descending=True, stable=True)
            chosen.index_fill_(0, order[self.max_detections :], False)  # an assignment would copy the value, and wait
        return chosen.nonzero().squeeze(1)  # waits for the GPU once; as a mask, every field would

    def postprocess(
        self,
        logits: Tensor,
        boxes: Tensor,
        predict_masks: Callable[[int, Tensor], Tensor] | None,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
    ) -> list[dict[str, Any]]:
        """One dict per image, at output size: ``height`` and ``width`` of the input, by default its image's own.

        logits: (N, Q, K + 1); boxes: (N, Q, 4) cxcywh in [0, 1]
        predict_masks: an image in [0, N) and its queries (R,) -> their mask logits (R, h, w). It is called for one
            image after the other: the mask logits of 16 images would take half a gigabyte
        """
        results = []
        for index, (x, image_size) in enumerate(zip(batched_inputs, images.image_sizes, strict=True)):
            results.append(
                self(
                    logits[index],
                    boxes[index].float(),
                    None if predict_masks is None else functools.partial(predict_masks, index),
                    padded_size=tuple(images.tensor.shape[-2:]),
                    image_size=image_size,
                    size=(int(x.get("height", image_size[0])), int(x.get("width", image_size[1]))),
                )
            )
        return results


def box_instances(logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> Instances:
    """All Q detections of one image: no threshold, no suppression, in the order of the queries.

    logits: (Q, K + 1), the last column no-object
    boxes: (Q, 4) cxcywh in [0, 1] of the image
    size: (height, width) of the output in pixels

    Returns Instances with ``pred_boxes`` xyxy in pixels (not clipped, as in the original), ``scores`` in
    [0, 1] and ``pred_classes`` in [0, K): the best class per query besides no-object (paper, sec. 4); and
    ``pred_queries`` in [0, Q), the query of each.
    """
    height, width = size
    scores, classes = logits.float().softmax(-1)[:, :-1].max(-1)
    in_pixels = Boxes(box_convert(boxes, "cxcywh", "xyxy"))
    in_pixels.scale(width, height)  # a product with a tensor of the host would wait for its copy
    return Instances(
        (height, width),
        pred_boxes=in_pixels,
        scores=scores,
        pred_classes=classes,
        pred_queries=torch.arange(len(scores), device=scores.device),
    )


def instance_masks(logits: Tensor, padded_size: Size, image_size: Size, size: Size) -> Tensor:
    """Binary masks of one image from their logits (R, h, w), in the original's two steps: (R, height, width) bool."""
    height, width = image_size
    masks = torch.empty(len(logits), *size, dtype=torch.bool, device=logits.device)
    at_once = masks_at_once(logits.device, padded_size)
    for chunk, mask in zip(logits.split(at_once), masks.split(at_once), strict=True):
        x = F.interpolate(chunk[:, None].float(), size=padded_size, mode="bilinear", align_corners=False)
        x = x[..., :height, :width]
        if size != image_size:
            x = F.interpolate(x, size=size, mode="nearest")
        torch.gt(x[:, 0], LEAST_LOGIT, out=mask)
    return masks


def which_are_things(
    num_classes: int, dataset_names: tuple[str, ...], required: bool, num_things: int = 0
) -> list[bool]:
    """For each class whether it is a thing, from the metadata of the first data set that numbers so many classes.

    num_things: where it is not 0, the first so many classes are things, whatever the metadata say

    Raises InputError where none does and it is ``required``.
    """
    if num_things:
        return [index < num_things for index in range(num_classes)]
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        things = set((metadata.get("thing_dataset_id_to_contiguous_id") or {}).values())
        stuff = set((metadata.get("stuff_dataset_id_to_contiguous_id") or {}).values())
        if things | stuff == set(range(num_classes)) and not things & stuff:
            return [index in things for index in range(num_classes)]
    if required:
        raise InputError(
            f"MODEL.DETR.PANOPTIC.ENABLED needs to know things from stuff, but none of the data sets {dataset_names} "
            f"has metadata of {num_classes} classes, things and stuff, numbered from 0 in one space: register it so, "
            "set MODEL.DETR.NUM_CLASSES to their number, or set MODEL.DETR.PANOPTIC.THINGS to the number of things"
        )
    return [True] * num_classes
