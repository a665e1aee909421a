"""YOLO folders: a data.yaml, and beside every image's folder one of text files with a line for each object."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from detectron2.structures import BoxMode

from detr.data.annotations import as_whole_number, shown
from detr.data.formats.folder import (
    IMAGE_SUFFIXES,
    DataFolder,
    Split,
    entries,
    image_size,
    is_of_roboflow,
    need_supervision,
    read_text,
)
from detr.errors import InputError

FARTHEST = 2.0  # the largest coordinate as a fraction of the image: what is farther was written in pixels
THREADS = 8  # they wait for files

logger = logging.getLogger(__name__)


def find_yaml(folder: Path) -> Path | None:
    """The YAML file in a folder that describes a YOLO data set; None where there is none.

    Raises InputError where there are several, and none is called data.yaml.
    """
    files = [path for path in entries(folder, {".yaml", ".yml"}) if _describes_data(path)]
    usual = [path for path in files if path.stem == "data"]
    if len(files) > 1 and len(usual) != 1:
        raise InputError(
            f"{folder} has {files[0].name} and {files[1].name}, and both name classes: give the path of one"
        )
    return next(iter(usual or files), None)


def _describes_data(path: Path) -> bool:
    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, InputError):
        return path.stem == "data"  # whose damage is worth an error
    return isinstance(content, dict) and "names" in content and bool({"train", "val", "test"} & content.keys())


def yolo_folder(file: Path) -> DataFolder:
    """file: the YAML file of a data set, which need not be named data.yaml.

    Raises InputError where it is damaged or its training images are not there.
    """
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is no YAML ({' '.join(str(error).split())}): restore the file") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}: YOLO's data.yaml is a dict with names and train")
    names, keypoints = _class_names(file, content), _keypoint_values(file, content)
    splits = {}
    for split, keys in {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}.items():
        key = next((key for key in keys if content.get(key)), None)
        places = [] if key is None else _places(file, content, key)
        if places:
            source = ", ".join(map(str, places))
            splits[split] = Split(source, partial(_read_split, places, names, keypoints))
    if not splits:
        raise InputError(f"{file} names no images: give train, and val where there is one, the folder of its images")
    roboflow = "roboflow" in content or is_of_roboflow(file.parent)
    return DataFolder(str(file), "YOLO (Roboflow)" if roboflow else "YOLO", splits, lambda: list(names))


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


def _read_split(places: Sequence[Path], names: Sequence[str], keypoints: int) -> list[dict[str, Any]]:
    need_supervision("YOLO's data sets")
    images: list[str] = []
    for place in places:
        images += _listed_images(place) if place.is_file() else _images_below(place)
    images = list(dict.fromkeys(images))  # in an order that is the same everywhere
    source = ", ".join(map(str, places))
    if not images:
        raise InputError(f"{source} has no image: put images there, or correct data.yaml")
    labels = _label_files(images, orphans=all(place.is_dir() for place in places))
    without = [image for image in images if labels[image] is None]
    if len(without) == len(images):
        raise InputError(
            f"none of the {len(images)} images of {source} has a label file: the labels of {images[0]} belong into "
            f"{_label_folder(Path(images[0]).parent) / Path(images[0]).stem}.txt"
        )
    if without:
        logger.warning(
            "%s: %d of %d images have no label file and count as images without objects; the first is %s",
            source, len(without), len(images), without[0],
        )  # fmt: skip
    with ThreadPoolExecutor(THREADS) as pool:
        sizes = list(pool.map(image_size, images))
    dicts = []
    for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
        label = labels[image]
        annotations = [] if label is None else _read_label(label, size, len(names), keypoints)
        dicts.append(
            {"file_name": image, "height": size[0], "width": size[1], "image_id": index, "annotations": annotations}
        )
    return dicts


def _images_below(folder: Path) -> list[str]:
    return sorted(
        str(path) for place, _, _ in os.walk(folder, followlinks=True) for path in entries(place, IMAGE_SUFFIXES)
    )


def _listed_images(file: Path) -> list[str]:
    """The images that a text file lists, a path a line, relative to the file or to where the program was started."""
    images = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        name = line.strip()
        if not name:
            continue
        tried = [file.parent / name, Path.cwd() / name]
        found = next((path for path in tried if path.is_file()), None)
        if found is None:
            raise InputError(f"{file}, line {number}: there is no image {tried[0]}: restore it, or take the line out")
        images.append(os.path.normpath(found))
    return images


def _label_folder(folder: Path) -> Path:
    """Where YOLO has the labels of a folder's images: the last ``images`` of its path becomes ``labels``."""
    parts = list(folder.parts)
    if "images" not in parts:
        return folder
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts)


def _label_files(images: Sequence[str], orphans: bool) -> dict[str, str | None]:
    """Image -> its label file, or None; orphans: whether label files without an image are counted in a warning."""
    by_folder = defaultdict(list)
    for image in images:
        by_folder[os.path.dirname(image)].append(image)
    labels: dict[str, str | None] = {}
    alone: list[Path] = []
    for folder, members in by_folder.items():
        place = _label_folder(Path(folder))
        texts = {path.stem: path for path in entries(place if place.is_dir() else folder, {".txt"})}
        stems = {Path(image).stem for image in members}
        for image in members:
            label = texts.get(Path(image).stem)
            labels[image] = None if label is None else str(label)
        alone += [path for stem, path in texts.items() if stem not in stems and stem not in ("classes", "notes")]
    if orphans and alone:
        logger.warning(
            "%d label files are left out, because there is no image of their name; the first is %s",
            len(alone),
            alone[0],
        )
    return labels


def _read_label(path: str, size: tuple[int, int], num_classes: int, keypoints: int) -> list[dict[str, Any]]:
    """size: (height, width) of the image. Raises InputError that names the line."""
    from supervision.dataset.formats.yolo import yolo_annotations_to_detections  # takes a second

    height, width = size
    lines = [(number, line.split()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if keypoints:
        lines = [(number, x[:5] if len(x) == 5 + keypoints else x) for number, x in lines]
    annotations = []
    for number, values in lines:
        where = f"{path}, line {number}"
        try:
            # Its masks would be pixels, many megabytes an image: polygons are kept as they were written.
            found = yolo_annotations_to_detections([" ".join(values)], (width, height), with_masks=False)
            label, numbers = int(found.class_id[0]), [float(x) for x in values[1:]]  # type: ignore[index]
        except (ValueError, OverflowError) as error:
            raise InputError(f"{where}: {str(error).rstrip('.')}: correct or delete the line") from error
        if not 0 <= label < num_classes:
            raise InputError(
                f"{where} has the class {label}, but data.yaml names {num_classes} classes, from 0 on: correct one"
            )
        if not all(abs(x) <= FARTHEST for x in numbers[: 4 if len(numbers) < 6 else len(numbers) // 2 * 2]):
            raise InputError(
                f"{where} has the coordinates {shown(numbers)}: they must be fractions of the image's width and height"
            )
        obj = {"category_id": label, "bbox": found.xyxy[0].tolist(), "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
        if len(numbers) >= 6:
            pairs = zip(numbers[0::2], numbers[1::2], strict=False)  # a confidence may follow the polygon
            obj["segmentation"] = [[x for pair in pairs for x in (pair[0] * width, pair[1] * height)]]
        annotations.append(obj)
    return annotations
