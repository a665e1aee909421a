"""The data set that a run was evaluated on: its objects, its classes and its image files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detr.data.annotations import clean_dicts
from detr.data.coco_file import class_ids, coco_dicts, read_coco
from detr.data.ground_truth import GroundTruth, load_truth, make_truth
from detr.data.loading import load_dataset
from detr.errors import InputError


@dataclass(frozen=True)
class Data:
    """truth, class_names, category_ids, files: as in ``Run``"""

    truth: Mapping[str, Any]
    class_names: tuple[str, ...]
    category_ids: tuple[Any, ...]
    files: Mapping[Any, str]


def read_registered(name: str, masks: bool) -> Data:
    """Of a data set of Detectron2's catalogs, the objects that the evaluation takes.

    masks: whether every object needs a segmentation

    Raises InputError as ``load_dataset`` and ``load_truth`` do, and where there are no annotations.
    """
    files = {x["image_id"]: str(x["file_name"]) for x in load_dataset(name)}
    return _data(load_truth(name, masks), files, f"the data set {name}")


def read_file(path: str, images: str, masks: bool) -> Data:
    """Of a file in COCO's format. images: the folder of its images; masks: as above

    Raises InputError as ``read_coco`` does, and where there are no annotations, or none of the images.
    """
    content = read_coco(path)
    contiguous = class_ids(content)
    dicts = clean_dicts(coco_dicts(content, path, images, contiguous, extra_keys=("area",)), path)
    if dicts and not any(map(os.path.isfile, (x["file_name"] for x in dicts))):
        raise InputError(
            f"{images} has none of the images of {path}, such as {dicts[0]['file_name']}: name their folder with "
            "--images"
        )
    names = {x["id"]: x["name"] for x in content["categories"]}
    truth = make_truth(dicts, names, contiguous, masks)
    return _data(truth, {x["image_id"]: x["file_name"] for x in dicts}, path)


def _data(truth: GroundTruth, files: Mapping[Any, str], where: str) -> Data:
    if not truth.content.get("annotations"):
        raise InputError(f"{where} has no annotations to compare the predictions with: evaluate on a set that has some")
    names = {x["id"]: x["name"] for x in truth.content["categories"]}
    category_ids = tuple(sorted(names, key=lambda key: truth.contiguous[key]))
    return Data(truth.content, tuple(names[key] for key in category_ids), category_ids, files)
