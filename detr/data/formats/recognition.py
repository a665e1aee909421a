"""What kind of data set lies at a path."""

import contextlib
import os
from pathlib import Path

from detr.data.formats.coco import coco_folder, find_coco_files
from detr.data.formats.folder import SPLIT_WORDS, DataFolder, split_of
from detr.data.formats.voc import find_layouts, voc_folder
from detr.data.formats.yolo import find_description, yolo_folder
from detr.errors import InputError

LAYOUTS = (
    "COCO (annotations/instances_train.json and train/, or train.json beside the images), YOLO (data.yaml, or "
    "classes.txt, images/ and labels/), Pascal VOC (Annotations/ and JPEGImages/, or XML beside the images)"
)


def recognize(path: str | os.PathLike[str]) -> DataFolder:
    """The data set at a path: a COCO file, YOLO's data.yaml, or a folder that holds either or Pascal VOC's XML.

    Labels are read later. Raises InputError where there is nothing, nothing known, or more than one kind of data set.
    """
    place = Path(os.path.abspath(os.path.expanduser(path)))
    if not place.exists():
        raise InputError(f"{path} does not exist{_hint(place)}: give the folder or file of a data set")
    if place.is_file():
        return _recognize_file(place)
    try:
        description, coco_files, voc_layouts = find_description(place), find_coco_files(place), find_layouts(place)
    except OSError as error:
        raise InputError(f"{place} cannot be looked through ({error}): make it readable") from error
    found = {
        "COCO": next(map(str, coco_files.values()), None),
        "YOLO": description and str(description),
        "Pascal VOC": next((layout.source for layout in voc_layouts.values()), None),
    }
    several = [f"{kind} ({source})" for kind, source in found.items() if source]
    if len(several) > 1:
        raise InputError(f"{place} holds {' and '.join(several)}: give the path of the file or folder that you mean")
    if description:
        return yolo_folder(description)
    if coco_files:
        return coco_folder(place, coco_files)
    if voc_layouts:
        return voc_folder(place, voc_layouts)
    near = _nearby(place)
    advice = f"but {near} does: give that path" if near else f"which are {LAYOUTS}"
    raise InputError(f"{place} holds no data set of a known layout, {advice}")


def _recognize_file(file: Path) -> DataFolder:
    suffix = file.suffix.lower()
    if suffix == ".json":
        split = split_of(file.stem) or SPLIT_WORDS.get(file.parent.name.lower(), "train")
        return coco_folder(file, {split: file})
    if suffix in (".yaml", ".yml"):
        return yolo_folder(file)
    advice = {
        ".xml": "give the folder of all XML files",
        ".txt": "give a data.yaml that names it and the classes",
        ".zip": "unpack it, and give the folder",
    }.get(suffix, "give the folder of a data set")
    raise InputError(f"{file} is neither COCO's JSON nor YOLO's data.yaml: {advice}")


def _hint(place: Path) -> str:
    parent = next(path for path in place.parents if path.is_dir())
    if parent == parent.parent:  # the file system's root says nothing of data sets
        return ""
    names = sorted(path.name for path in parent.iterdir() if not path.name.startswith("."))
    return (
        f"; {parent} has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else f"; {parent} is empty"
    )


def _nearby(place: Path) -> Path | None:
    """The folder above, or the only one below, if it holds a data set: archives are unpacked in many ways."""
    below = [path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    with contextlib.suppress(InputError, OSError):  # of a folder that was not asked for
        above = place.parent
        if find_description(above) or ((above / "annotations").is_dir() and find_coco_files(above)):
            return above
        if len(below) == 1 and (find_description(below[0]) or find_coco_files(below[0]) or find_layouts(below[0])):
            return below[0]
    return None
