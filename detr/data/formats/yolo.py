"""YOLO's data sets: a data.yaml, or a classes.txt, that says where images are and what classes are called."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from detr.data.annotations import as_whole_number, shown
from detr.data.formats.folder import DataFolder, Split, entries, is_of_roboflow, read_text, split_of
from detr.data.formats.yolo_labels import read_images
from detr.errors import InputError

logger = logging.getLogger(__name__)


def find_description(folder: Path) -> Path | None:
    """The file in a folder that describes a YOLO data set, a YAML file or, beside ``images`` and ``labels``, a
    classes.txt; None where there is none.

    Raises InputError where there are several, and none is called data.yaml.
    """
    files = [path for path in entries(folder, {".yaml", ".yml"}) if _describes_data(path)]
    usual = [path for path in files if path.stem == "data"]
    if len(files) > 1 and len(usual) != 1:
        raise InputError(
            f"{folder} has {files[0].name} and {files[1].name}, and both name classes: give the path of one"
        )
    if not files and (folder / "images").is_dir() and (folder / "labels").is_dir():
        files = [path for path in entries(folder, {".txt"}) if path.stem == "classes"]
    return next(iter(usual or files), None)


def _describes_data(path: Path) -> bool:
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, InputError):
        return path.stem == "data"  # whose damage is worth an error
    parts = {"train", "val", "test", "names"} & content.keys() if isinstance(content, dict) else set()
    return bool(parts) and (path.stem == "data" or (len(parts) > 1 and "names" in parts))


def yolo_folder(file: Path) -> DataFolder:
    """file: the description of a data set, as ``find_description`` finds it; a YAML file may have any name.

    Raises InputError where it is damaged or its training images are not there.
    """
    content = _read_classes(file) if file.suffix == ".txt" else _read_yaml(file)
    names, keypoints = _class_names(file, content), _keypoint_values(file, content)
    splits = {}
    for split, keys in {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}.items():
        key = next((key for key in keys if content.get(key)), None)
        places = [] if key is None else _places(file, content, key)
        if places:
            read = partial(read_images, places, len(names), keypoints)
            splits[split] = Split(", ".join(map(str, places)), read)
    if not splits:
        raise InputError(f"{file} names no images: give train, and val where there is one, the folder of its images")
    roboflow = "roboflow" in content or is_of_roboflow(file.parent)
    return DataFolder(str(file), "YOLO (Roboflow)" if roboflow else "YOLO", splits, lambda: list(names))


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is no YAML ({' '.join(str(error).split())}): restore the file") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}: YOLO's data.yaml is a dict with names and train")
    return content


def _read_classes(file: Path) -> dict[str, Any]:
    """What data.yaml would say of a folder that has a classes.txt, such as Label Studio writes."""
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    images = file.parent / "images"
    parts = {split_of(path.name): f"images/{path.name}" for path in sorted(images.iterdir()) if path.is_dir()}
    named = {split: place for split, place in parts.items() if split is not None}
    return {"names": names, **(named or {"train": "images"})}


def _class_names(file: Path, content: dict[str, Any]) -> list[str]:
    names = content.get("names")
    if isinstance(names, dict):
        keys = {as_whole_number(key): name for key, name in names.items()}
        if sorted(keys, key=str) != sorted(range(len(names)), key=str):
            raise InputError(f"{file} has the names {shown(names)}: number them 0, 1, 2, ...")
        names = [keys[index] for index in range(len(keys))]
    if not isinstance(names, list) or not names or not all(isinstance(x, (str, int, float)) and str(x) for x in names):
        raise InputError(f"{file} has the names {shown(names)}: it must list the names of the classes")
    count = content.get("nc")
    if count is not None and count != len(names):
        raise InputError(f"{file} has nc {shown(count)}, but {len(names)} names: correct one of them")
    return [str(name) for name in names]


def _keypoint_values(file: Path, content: dict[str, Any]) -> int:
    """How many numbers of keypoints follow the box in a line."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(isinstance(x, int) and x > 0 for x in shape):
        raise InputError(f"{file} has the kpt_shape {shown(shape)}: it must be [number of keypoints, 2 or 3]")
    return int(shape[0] * shape[1])


def _places(file: Path, content: dict[str, Any], key: str) -> list[Path]:
    """The folders and lists of images that a key of data.yaml names, where they really are.

    Empty for validation and test images that are not there, which is logged: exporters name them in any case.
    """
    values = content[key] if isinstance(content[key], list) else [content[key]]
    places = []
    for value in values:
        if not isinstance(value, str):
            raise InputError(
                f"{file} has {key} {shown(content[key])}: it must be a folder of images, or a list of them"
            )
        tried = list(dict.fromkeys(_candidates(file.parent, content.get("path"), value)))
        found = next((path for path in tried if path.exists()), None)
        if found is not None:
            places.append(found)
            continue
        text = f"{file} has {key}: {value}, but there is no {', nor '.join(map(str, tried))}"
        if key == "train":
            raise InputError(f"{text}: correct it, or its path, which is relative to the file")
        logger.warning("%s: no %s split is taken", text, key)
    return places


def _candidates(folder: Path, path: Any, value: str) -> list[Path]:
    """Where a value of data.yaml may lie: Ultralytics resolves it by ``path``, Roboflow writes one ``../`` too many."""
    bases = [folder / str(path), Path.cwd() / str(path), folder] if path else [folder]
    inner = value
    while inner.startswith("../"):
        inner = inner[3:]
    return [Path(os.path.normpath(base / part)) for base in bases for part in dict.fromkeys((value, inner))]
