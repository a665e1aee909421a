"""The released models for torch.hub, under the names that the original has there.

torch.hub.load(REPOSITORY, "detr_resnet50", pretrained=True)
torch.hub.load(REPOSITORY, "detr_resnet101_panoptic", pretrained=True, return_postprocessor=True)
"""

import collections.abc
import typing

import detr.torch_hub.model
import detr.torch_hub.postprocessing

dependencies = ["torch", "torchvision", "detectron2", "scipy", "fvcore"]


def _entry_point(name: str) -> collections.abc.Callable[..., typing.Any]:
    released = detr.model_zoo.entry(name)
    ids = detr.torch_hub.model.num_columns(released.num_classes) - 1

    def build_boxes(
        pretrained: bool = False, num_classes: int = released.num_classes, return_postprocessor: bool = False
    ) -> typing.Any:
        model = detr.torch_hub.model.hub_model(name, pretrained, num_classes)
        return (model, detr.torch_hub.postprocessing.BoxPostprocessor()) if return_postprocessor else model

    def build_panoptic(
        pretrained: bool = False,
        num_classes: int = released.num_classes,
        threshold: float = 0.85,
        return_postprocessor: bool = False,
    ) -> typing.Any:
        model = detr.torch_hub.model.hub_model(name, pretrained, num_classes, threshold)
        return (
            (model, detr.torch_hub.postprocessing.PanopticPostprocessor(threshold)) if return_postprocessor else model
        )

    published = f"box AP {released.box_ap}" + (f", PQ {released.pq}" if released.pq else "")
    threshold = "threshold: the score that a query needs to take part in a panoptic map\n    " if released.pq else ""
    build = build_panoptic if released.pq else build_boxes
    build.__doc__ = f"""{name}: {published} on COCO val 2017, as the authors publish it.

    pretrained: the released weights, downloaded the first time; else random ones
    num_classes: without no-object; {ids}, the original's count of COCO's ids, means the {released.num_classes} classes
        too. With another number the class head is re-initialized
    {threshold}return_postprocessor: whether a pair is returned, the model and its postprocessor for tensors

    Returns a model on the CPU in evaluation mode. It takes images in two forms:

    As the original's, a tensor (N, 3, H, W) or a list of (3, H, W), normalized. It returns a dict: pred_logits
    (N, 100, {ids + 1}), pred_boxes (N, 100, 4) and of a panoptic model pred_masks; see ``HubDetr.original_outputs``.

    Detectron2's list of dicts, one per image: "image", (3, H, W) RGB in the range 0..255, resized as you want it seen
    (shortest side 800, longest at most 1333), and "height", "width" of the output where that has another size. It
    returns a list of dicts: "instances" with pred_boxes (xyxy in pixels of the output), scores and pred_classes of all
    100 queries. From a panoptic model "instances" are the things, with pred_masks, and "panoptic_seg" is the map with
    its segments. In training mode see the docstring of ``Detr.forward``.
    """
    return build


detr_resnet50 = _entry_point("detr_R_50")
detr_resnet50_dc5 = _entry_point("detr_R_50_DC5")
detr_resnet101 = _entry_point("detr_R_101")
detr_resnet101_dc5 = _entry_point("detr_R_101_DC5")
detr_resnet50_panoptic = _entry_point("detr_R_50_panoptic")
detr_resnet50_dc5_panoptic = _entry_point("detr_R_50_DC5_panoptic")
detr_resnet101_panoptic = _entry_point("detr_R_101_panoptic")
