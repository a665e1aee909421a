"""The task and the classes of a registered data set, from its metadata."""

from collections.abc import Iterable
from types import NoneType

from detectron2.data import MetadataCatalog

from detr.errors import InputError


def is_panoptic(name: str) -> bool:
    """Whether the data set has panoptic PNGs with segments of things and stuff, as `coco_2017_val_panoptic` does."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == "coco_panoptic_seg" and metadata.get("panoptic_root") is not None


def class_names(name: str) -> list[str] | None:
    """The names of the classes that a model learns from the data set, in the order of their ids; None if unknown.

    The classes of a panoptic set are things and stuff together. `stuff_classes` lists all of them; `thing_classes`
    does so in Detectron2's `coco_panoptic_standard`, but lists only things in other sets. Raises InputError where the
    metadata have no list there.
    """
    key = "stuff_classes" if is_panoptic(name) else "thing_classes"
    names = MetadataCatalog.get(name).get(key)
    if isinstance(names, str) or not isinstance(names, (Iterable, NoneType)):
        raise InputError(f"the data set {name} has the {key} {names!r} in its metadata: it must be a list of names")
    return None if names is None else list(names)


def thing_ids(name: str) -> list[int]:
    """The contiguous ids of a panoptic set's things, in ascending order."""
    return sorted(MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.values())
