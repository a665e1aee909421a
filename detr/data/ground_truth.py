"""What the COCO evaluator compares detections with: the same objects that the mapper makes targets of."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from detr.data.annotations import check_labels, clean_dicts, decide, flatten, shown, size_of
from detr.data.boxes import boxes_to_xyxy
from detr.data.coco_file import class_ids, coco_dicts, read_coco
from detr.data.loading import check_unique_images, load_dataset
from detr.data.masks import encode, has_segmentation
from detr.data.metadata import class_names
from detr.errors import InputError

LARGEST_AREA = 1e10  # COCO's evaluation ignores what is larger
TOLERANCE = 1.0  # pixels by which a box may reach over the border, as COCO's rounded ones do
SAME = 0.95  # the share of a box that has to be inside, for less is another box at COCO's highest threshold

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundTruth:
    """
    content: in COCO's format; without "annotations" where the data set has none
    contiguous: category id -> contiguous id
    clipped: ids of images with boxes that are clipped here, because they reach over the border by more than a pixel.
        Detections must be clipped there too.
    """

    content: dict[str, Any]
    contiguous: Mapping[Any, int]
    clipped: frozenset[Any] = frozenset()


def load_truth(dataset_name: str, masks: bool) -> GroundTruth:
    """The ground truth of a data set, from its ``json_file`` or, where it has none, from its dicts; never from a cache.

    masks: whether every annotation needs a segmentation, which becomes an RLE

    Raises InputError as ``load_dataset`` does, and for categories that the metadata does not have.
    """
    metadata = MetadataCatalog.get(dataset_name)
    path = metadata.get("json_file")
    if path:
        content = read_coco(path)
        contiguous = _contiguous_ids(dataset_name, path, content)
        # A panoptic set may list stuff too, of which there are no instances.
        names = {x["id"]: x["name"] for x in content["categories"] if x["id"] in contiguous}
        if "annotations" not in content:
            return GroundTruth(content, contiguous)
        dicts = coco_dicts(content, path, metadata.get("image_root") or "", contiguous, extra_keys=("area",))
        return make_truth(clean_dicts(dicts, dataset_name), names, contiguous, masks)
    dicts = load_dataset(dataset_name)
    check_unique_images(dataset_name, dicts)
    classes = class_names(dataset_name)
    if classes is None:  # numbers will do
        labels = [obj["category_id"] for x in dicts for obj in x["annotations"]]
        classes = [str(label) for label in range(max(labels, default=-1) + 1)]
    for x in dicts:
        check_labels([obj for obj in x["annotations"] if not obj.get("iscrowd")], len(classes), x["file_name"])
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i for i in range(len(classes))}
    _check_contiguous(dataset_name, contiguous, len(classes))
    names = {key: classes[index] for key, index in contiguous.items()}
    return make_truth(dicts, names, contiguous, masks)


def _contiguous_ids(name: str, path: str, content: Mapping[str, Any]) -> dict[Any, int]:
    """Category id -> contiguous id by the metadata; without it as Detectron2's loader would number them."""
    metadata, by_file = MetadataCatalog.get(name), class_ids(content)
    known = metadata.get("thing_dataset_id_to_contiguous_id")
    if known is not None:
        _check_contiguous(name, known, len(known) if isinstance(known, Mapping) else 0)
        used = {annotation["category_id"] for annotation in content.get("annotations", [])}
        if missing := used - known.keys():
            raise InputError(
                f"{path} of the data set {name} has the category id {shown(min(missing, key=str))}, which is not in "
                "its metadata's thing_dataset_id_to_contiguous_id: correct one of them"
            )
        return dict(known)
    names = {category["id"]: category["name"] for category in content["categories"]}
    classes = metadata.get("thing_classes")
    if classes is not None and list(classes) != [names[key] for key in by_file]:
        raise InputError(
            f"the data set {name} has the thing_classes {shown(list(classes))}, but {path} has "
            f"{shown(list(names.values()))}: set its metadata's thing_dataset_id_to_contiguous_id, or correct one"
        )
    return by_file


def _check_contiguous(name: str, contiguous: Any, number: int) -> None:
    values = contiguous.values() if isinstance(contiguous, Mapping) else [None]
    if sorted(values, key=str) != sorted(range(number), key=str):
        raise InputError(
            f"the data set {name} has the thing_dataset_id_to_contiguous_id {shown(contiguous)} in its metadata: it "
            "must map an id of each class to 0, 1, ..., or be left out"
        )


def make_truth(
    dicts: Sequence[dict[str, Any]], names: Mapping[Any, str], contiguous: Mapping[Any, int], masks: bool
) -> GroundTruth:
    """
    dicts: clean dataset dicts with contiguous labels; an annotation may have an ``area``
    names: category id -> name; contiguous: category id -> contiguous id
    masks: as ``load_truth``

    What COCO's evaluation would misread is set right: annotations are numbered from 1, an ``area`` that cannot be is
    that of the mask or the box, and dropped objects are left out.
    """
    ids = {index: key for key, index in contiguous.items()}
    flat, image, height, width = flatten(dicts)
    fates = decide(flat, height, width)
    boxes = boxes_to_xyxy(flat)
    outside = np.abs(boxes - fates.boxes).max(axis=1, initial=0) > TOLERANCE
    inside, whole = (np.prod((x[:, 2:] - x[:, :2]).astype(float), axis=1) for x in (fates.boxes, boxes))
    outside |= inside < SAME * whole
    annotations: list[dict[str, Any]] = []
    clipped = set()
    for i, obj, box, dropped, is_outside in zip(image.tolist(), flat, fates.boxes, fates.dropped, outside, strict=True):
        if dropped or obj["category_id"] not in ids:  # a crowd may have any class
            continue
        x = dicts[i]
        x1, y1, x2, y2 = map(float, box)
        bbox = [x1, y1, x2 - x1, y2 - y1] if is_outside else _to_xywh(obj)
        if is_outside:
            clipped.add(x["image_id"])
        annotation = {
            "id": len(annotations) + 1,
            "image_id": x["image_id"],
            "category_id": ids[obj["category_id"]],
            "bbox": bbox,
            "iscrowd": obj.get("iscrowd", 0),
        }
        if masks:
            annotation["segmentation"] = _as_text(encode(obj.get("segmentation"), size_of(x), x["file_name"]))
        annotation["area"] = _area(obj, annotation, x)
        annotations.append(annotation)
    sizes = ("height", "width")
    content = {
        "info": {},
        "images": [{"id": x["image_id"], **{key: x[key] for key in sizes if key in x}} for x in dicts],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
        "annotations": annotations,
    }
    return GroundTruth(content, contiguous, frozenset(clipped))


def check_same_images(name: str, dicts: Sequence[dict[str, Any]], truth: GroundTruth) -> None:
    """Raises InputError where the data set has an image that its ``json_file`` does not have, or lacks one that has
    objects there, which would count as missed.
    """
    loaded, known = {x["image_id"] for x in dicts}, {image["id"] for image in truth.content["images"]}
    annotated = {annotation["image_id"] for annotation in truth.content.get("annotations", [])}
    path = MetadataCatalog.get(name).get("json_file")
    for ids, has, whose in (
        (loaded - known, "has", "does not have"),
        (annotated - loaded, "lacks", "has, with objects that would count as missed"),
    ):
        if ids:
            image = shown(min(ids, key=str))
            raise InputError(
                f"the data set {name} {has} the image with the id {image}, which {path} {whose}: both must be of the "
                "same images"
            )


def warn_of_other_objects(name: str, dicts: Sequence[dict[str, Any]], truth: GroundTruth) -> None:
    """Logs a warning where the loader of a data set gives other objects than its ``json_file``, which evaluates."""
    loaded = make_truth(dicts, {}, {index: index for index in truth.contiguous.values()}, masks=False).content
    ours = Counter(_object(x, x["category_id"]) for x in loaded["annotations"])
    theirs = Counter(_object(x, truth.contiguous[x["category_id"]]) for x in truth.content.get("annotations", []))
    if ours and ours != theirs:
        logger.warning(
            "%s: %d of %d objects are not in %s with the same box and class, and %d of its %d are not in the data set; "
            "the evaluation takes those of the file",
            name,
            (ours - theirs).total(),
            ours.total(),
            MetadataCatalog.get(name).get("json_file"),
            (theirs - ours).total(),
            theirs.total(),
        )


def _object(annotation: Mapping[str, Any], label: int) -> tuple[Any, ...]:
    return annotation["image_id"], label, annotation["iscrowd"], *(round(value) for value in annotation["bbox"])


def as_detections(truth: GroundTruth) -> list[dict[str, Any]]:
    """The objects of the ground truth in COCO's format of results, with contiguous classes and a score of 1."""
    keys = ("image_id", "bbox", "segmentation")
    return [
        {
            **{key: x[key] for key in keys if key in x},
            "category_id": truth.contiguous[x["category_id"]],
            "score": 1.0,
        }
        for x in truth.content.get("annotations", [])
        if not x.get("iscrowd")
    ]


def images_of_empty_masks(truth: GroundTruth) -> list[Any]:
    """The ids of the images of objects without a pixel, which no mask can match; one for each object."""
    masks = [x for x in truth.content.get("annotations", []) if isinstance(x.get("segmentation"), dict)]
    return [x["image_id"] for x in masks if not x["iscrowd"] and not mask_util.area(x["segmentation"])]


def _to_xywh(obj: Mapping[str, Any]) -> list[float]:
    x, y, a, b = map(float, obj["bbox"])
    return [x, y, a, b] if obj["bbox_mode"] == BoxMode.XYWH_ABS else [x, y, a - x, b - y]


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}


def _area(obj: Mapping[str, Any], annotation: Mapping[str, Any], x: dict[str, Any]) -> float:
    """In pixels: as annotated; where that cannot be, of the mask or, without a mask, of the box."""
    area = obj.get("area")
    if isinstance(area, (int, float)) and not isinstance(area, bool) and 0 < area <= LARGEST_AREA:
        return float(area)
    rle = annotation.get("segmentation")
    if rle is None and has_segmentation(dict(obj)):
        try:
            rle = encode(obj["segmentation"], size_of(x), x["file_name"])
        except InputError:
            rle = None  # only the size class of a box depends on it
    return float(mask_util.area(rle)) if rle is not None else annotation["bbox"][2] * annotation["bbox"][3]
