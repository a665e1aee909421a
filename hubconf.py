"""The released models for torch.hub, under the names that the original has there.

torch.hub.load(REPOSITORY, "detr_resnet50", pretrained=True)
"""

import collections.abc

import detr

dependencies = ["torch", "torchvision", "detectron2", "scipy", "fvcore"]


def _entry_point(name: str) -> collections.abc.Callable[..., detr.Detr]:
    released = detr.model_zoo.entry(name)

    def build(pretrained: bool = False, num_classes: int = released.num_classes) -> detr.Detr:
        return detr.model_zoo.get(name, pretrained, "cpu", num_classes)

    published = f"box AP {released.box_ap}" + (f", PQ {released.pq}" if released.pq else "")
    build.__doc__ = f"""{name}: {published} on COCO val 2017, as the authors publish it.

    pretrained: the released weights, downloaded the first time; else random ones
    num_classes: without no-object; with another number than {released.num_classes} the class head is re-initialized

    Returns a model on the CPU in evaluation mode. It takes Detectron2's list of dicts, one per image: "image",
    (3, H, W) RGB in the range 0..255, resized as you want it seen (shortest side 800, longest at most 1333), and
    "height", "width" of the output where that has another size. It returns a list of dicts: "instances" with
    pred_boxes (xyxy in pixels of the output), scores and pred_classes of all 100 queries. From a panoptic model
    "instances" are the things, with pred_masks, and "panoptic_seg" is the map with its segments. In training mode
    see the docstring of ``Detr.forward``.
    """
    return build


detr_resnet50 = _entry_point("detr_R_50")
detr_resnet50_dc5 = _entry_point("detr_R_50_DC5")
detr_resnet101 = _entry_point("detr_R_101")
detr_resnet101_dc5 = _entry_point("detr_R_101_DC5")
detr_resnet50_panoptic = _entry_point("detr_R_50_panoptic")
detr_resnet50_dc5_panoptic = _entry_point("detr_R_50_DC5_panoptic")
detr_resnet101_panoptic = _entry_point("detr_R_101_panoptic")
