"""What the metadata of a registered data set say about its task and its classes."""

from detectron2.data import MetadataCatalog


def is_panoptic(name: str) -> bool:
    """Whether the data set has segments of things and stuff, in PNGs, as `coco_2017_val_panoptic` has."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == "coco_panoptic_seg" and metadata.get("panoptic_root") is not None


def class_names(name: str) -> list[str] | None:
    """The names of the classes that a model learns from the data set, in the order of their ids; None where unknown.

    Of a panoptic set these are things and stuff together, in the one space of ids that `stuff_classes` lists whole
    (`thing_classes` does so in Detectron2's `coco_panoptic_standard`, and holds things alone elsewhere).
    """
    names = MetadataCatalog.get(name).get("stuff_classes" if is_panoptic(name) else "thing_classes")
    return None if names is None else list(names)


def thing_ids(name: str) -> list[int]:
    """The contiguous ids of a panoptic set's things, in ascending order."""
    return sorted(MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.values())
