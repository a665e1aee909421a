"""A data set's images to look through, with their objects: as they are annotated, or as a network is shown them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng

from detr.data.images import read_image
from detr.data.masks import rasterize
from detr.data.panoptic_mapper import read_segment_ids
from detr.pictures.drawing import draw_objects, draw_segments, label_text
from detr.pictures.sheets import Names, draw_targets

LONGER_SIDE = 600  # pixels of a picture

Item = dict[str, Any]


@dataclass
class View:
    """An image as it is drawn. size: (height, width) in pixels, before it was scaled; labels: of its objects"""

    picture: np.ndarray
    size: tuple[int, int]
    labels: list[str]

    def line(self) -> str:
        """Size, objects and classes, as in "640 x 480, 3 objects: 2 cat, 1 dog"."""
        counts = ", ".join(f"{count} {label}" for label, count in Counter(self.labels).most_common())
        objects = f"{len(self.labels)} object{'' if len(self.labels) == 1 else 's'}"
        return f"{self.size[1]} x {self.size[0]}, {objects}{': ' if counts else ''}{counts}"


def view_targets(x: Item, mapper: Callable[[Item], Item], image_format: str, names: Names, seed: int) -> View:
    """An image as a mapper makes it for training.

    x: of a data set; mapper: such as ``DetrDatasetMapper``, which draws its random numbers from ``seed``
    image_format: as INPUT.FORMAT; names: of the classes
    """
    seed_all_rng(seed)
    made = mapper(x)
    targets = made["instances"]
    labels = [label_text(index, names) for index in targets.gt_classes.tolist()]
    picture = draw_targets(made, image_format, names, LONGER_SIDE / max(targets.image_size))
    return View(picture, targets.image_size, labels)


def view_annotations(x: Item, names: Names) -> View:
    """An image with all that is annotated in it: boxes, masks where there are any, crowds, panoptic segments.

    Raises InputError for files that cannot be read.
    """
    image = read_image(x["file_name"], "RGB")
    size, scale = image.shape[:2], LONGER_SIDE / max(image.shape[:2])
    objects: Sequence[Item] = x["segments_info"] if "segments_info" in x else x.get("annotations", [])
    labels = [label_text(obj["category_id"], names) + (" (crowd)" if obj.get("iscrowd") else "") for obj in objects]
    if "segments_info" in x:
        ids = torch.from_numpy(read_segment_ids(x["pan_seg_file_name"]))
        return View(draw_segments(image, ids, objects, names, scale), size, labels)
    boxes = [BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in objects]
    masks = None
    if any(map(has_segmentation, objects)):
        empty = np.zeros(size, dtype=bool)
        drawn = [
            rasterize(obj["segmentation"], size, x["file_name"]) if has_segmentation(obj) else empty for obj in objects
        ]
        masks = torch.from_numpy(np.stack(drawn))
    classes = [obj["category_id"] for obj in objects]
    return View(draw_objects(image, np.array(boxes).reshape(-1, 4), classes, labels, masks, scale), size, labels)


def has_segmentation(obj: Mapping[str, Any]) -> bool:
    """Whether an annotation has a polygon, an RLE or a bitmap."""
    segmentation = obj.get("segmentation")
    return segmentation is not None and len(segmentation) > 0


def title(index: int, x: Item, view: View) -> str:
    """What stands above a picture: its number in the data set, its file and its size."""
    return f"{index}  {Path(x['file_name']).name}  {view.size[1]} x {view.size[0]}"
