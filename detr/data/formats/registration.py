"""Data sets of every known format in Detectron2's catalogs."""

import os
from functools import partial
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from detr.data.formats.folder import DataFolder, Split
from detr.data.formats.recognition import recognize
from detr.errors import InputError


def register_any(name: str, path: str | os.PathLike[str], split: str = "") -> None:
    """Registers a data set for DATASETS.TRAIN and DATASETS.TEST.

    name: by which it is called there
    path: of a COCO file, of YOLO's data.yaml, or of a folder that holds either or Pascal VOC's XML
    split: "train", "val" or "test"; "" where there is only one

    A COCO file becomes what ``register_coco_instances`` makes of it. Images and labels are read when the data set is
    loaded, and ``thing_classes`` of COCO and Pascal VOC with them. A second call for the same path and split changes
    nothing. Raises InputError where there is no such data set, and for a name that is taken.
    """
    found = recognize(path)
    chosen, part = found.split(split)
    source = f"{found.path} ({chosen})"
    if name in DatasetCatalog:
        known = MetadataCatalog.get(name).get("source")
        if known == source:
            return
        raise InputError(
            f"the data set {name} is already registered{f' for {known}' if known else ''}: choose another name for "
            f"{source}"
        )
    if found.kind == "COCO":
        register_coco_instances(name, {}, part.json_file, part.image_root)
    else:
        DatasetCatalog.register(name, partial(_load, name, found, part))
        MetadataCatalog.get(name).set(evaluator_type="coco")
    if found.kind.startswith("YOLO"):
        MetadataCatalog.get(name).set(thing_classes=found.class_names)
    MetadataCatalog.get(name).set(source=source)


def _load(name: str, found: DataFolder, part: Split) -> list[dict[str, Any]]:
    MetadataCatalog.get(name).set(thing_classes=found.class_names)
    return part.dicts()
