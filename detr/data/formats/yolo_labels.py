"""Images of a YOLO data set, and the text files with a line for each object, to dicts."""

import logging
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from detectron2.structures import BoxMode

from detr.data.annotations import shown
from detr.data.formats.folder import IMAGE_SUFFIXES, entries, image_size, optional, read_text
from detr.errors import InputError

FARTHEST = 2.0  # the largest coordinate as a fraction of the image: what is farther was written in pixels
READER = "supervision.dataset.formats.yolo"  # imported late: it takes a second
THREADS = 8  # they wait for files
NO_LABELS = ("classes", "notes")  # text files that exporters put beside labels

logger = logging.getLogger(__name__)


def read_images(places: Sequence[Path], num_classes: int, keypoints: int = 0) -> list[dict[str, Any]]:
    """Dataset dicts in the order of the paths.

    places: folders of images, and text files that list images
    keypoints: how many numbers of keypoints may follow a box

    Images without a label file have no objects; these, and label files without an image, are counted in a warning.
    Raises InputError for bad lines, by file and number, for images that cannot be opened, and where no image has a
    label file.
    """
    optional(READER)  # says at once that it is missing
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
        annotations = [] if label is None else _read_label(label, size, num_classes, keypoints)
        dicts.append(
            {"file_name": image, "height": size[0], "width": size[1], "image_id": index, "annotations": annotations}
        )
    return dicts


def _images_below(folder: Path) -> list[str]:
    images: list[Path] = []
    for place, folders, _ in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]  # caches of other programs
        images += entries(place, IMAGE_SUFFIXES)
    return sorted(map(str, images))


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
        alone += [path for stem, path in texts.items() if stem not in stems and stem not in NO_LABELS]
    if orphans and alone:
        logger.warning(
            "%d label files are left out, because there is no image of their name; the first is %s",
            len(alone),
            alone[0],
        )
    return labels


def _read_label(path: str, size: tuple[int, int], num_classes: int, keypoints: int) -> list[dict[str, Any]]:
    """size: (height, width) of the image. Raises InputError that names the line."""
    height, width = size
    lines = [(number, line.split()) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    if keypoints:
        lines = [(number, words[:5] if len(words) == 5 + keypoints else words) for number, words in lines]
    if not lines:
        return []
    try:
        labels, boxes = _parse([words for _, words in lines], width, height)
    except (ValueError, OverflowError):
        for number, words in lines:
            try:
                _parse([words], width, height)
            except (ValueError, OverflowError) as error:
                reason = str(error).rstrip(".")
                raise InputError(f"{path}, line {number}: {reason}: correct or delete the line") from error
        raise
    annotations = []
    for (number, words), label, box in zip(lines, labels, boxes, strict=True):
        where, numbers = f"{path}, line {number}", [float(word) for word in words[1:]]
        is_polygon = len(numbers) >= 6
        if not is_polygon or len(numbers) % 2:
            numbers = numbers[: 4 if not is_polygon else -1]  # without a confidence
        if not 0 <= label < num_classes:
            raise InputError(
                f"{where} has the class {label}, but data.yaml names {num_classes} classes, from 0 on: correct one"
            )
        if max(map(abs, numbers)) > FARTHEST:
            raise InputError(
                f"{where} has the coordinates {shown(numbers)}: they must be fractions of the image's width and height"
            )
        obj = {"category_id": label, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "iscrowd": 0}
        if is_polygon:
            obj["segmentation"] = [[value * (height if i % 2 else width) for i, value in enumerate(numbers)]]
        annotations.append(obj)
    return annotations


def _parse(lines: Sequence[Sequence[str]], width: int, height: int) -> tuple[list[int], list[list[float]]]:
    """The classes and boxes of lines, xyxy in pixels. Raises ValueError and OverflowError."""
    parse = optional(READER).yolo_annotations_to_detections
    # Its masks would be pixels, many megabytes an image: polygons are kept as they are written.
    found = parse([" ".join(words) for words in lines], (width, height), with_masks=False)
    return found.class_id.tolist(), found.xyxy.tolist()
