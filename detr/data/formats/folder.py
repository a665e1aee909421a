"""A data set as it lies on the disk: its kind, its classes and its splits, read when they are asked for."""

import importlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from detr.data.images import size_in_file
from detr.errors import InputError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif", ".jp2"})
# The words by which people name splits. VOC's trainval is what one trains on where it is all there is.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
SPLIT_FOLDERS = tuple(SPLIT_WORDS)


@dataclass(frozen=True)
class Split:
    """One of a data set's parts.

    source: the file or folder that lists its images, for messages
    read: reads its dicts
    json_file, image_root: of a split in COCO's format; None of others
    """

    source: str
    read: Callable[[], list[dict[str, Any]]]
    json_file: str | None = None
    image_root: str | None = None

    def dicts(self) -> list[dict[str, Any]]:
        """Detectron2's dataset dicts: boxes in pixels of the upright image, XYXY_ABS or XYWH_ABS; polygons where
        there are; classes counted from 0.

        Raises InputError that names the file, and the line where it has lines.
        """
        return self.read()


@dataclass(frozen=True)
class DataFolder:
    """
    path: the absolute path that was recognized
    kind: "COCO", "YOLO" or "Pascal VOC", with " (Roboflow)" after it for what Roboflow exported
    splits: "train", "val" and "test", as far as they are there
    read_class_names: reads the names of the classes
    """

    path: str
    kind: str
    splits: dict[str, Split]
    read_class_names: Callable[[], list[str]]

    @cached_property
    def class_names(self) -> list[str]:
        """In the order of their numbers. Raises InputError where the files that hold them are damaged."""
        return self.read_class_names()

    def split(self, name: str = "") -> tuple[str, Split]:
        """The split of a name, "train", "val" or "test", or, of "", the only one; and its name. Raises InputError."""
        if not name and len(self.splits) == 1:
            return next(iter(self.splits.items()))
        if name in self.splits:
            return name, self.splits[name]
        names = ", ".join(self.splits)
        if not name:
            raise InputError(f"{self.path} has the splits {names}: say which, as in split={next(iter(self.splits))!r}")
        raise InputError(f"{self.path} has no split {name!r}: it has {names}")


def split_of(name: str) -> str | None:
    """The split that a file or folder name tells, as in ``instances_val2017``; None where it tells none."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def entries(folder: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """The files in a folder with one of the suffixes, in ascending order; none where there is no folder."""
    wanted = frozenset(suffixes)
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as found:
        paths = [entry.path for entry in found if os.path.splitext(entry.name)[1].lower() in wanted and entry.is_file()]
    return sorted(Path(path) for path in paths if not os.path.basename(path).startswith("."))


def subfolder(folder: Path, *names: str) -> Path | None:
    """The first subfolder of one of the names, in whatever case; None where there is none."""
    by_name = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return next((by_name[name.lower()] for name in names if name.lower() in by_name), None)


def is_of_roboflow(folder: Path) -> bool:
    """Whether Roboflow's note lies in the folder or above it, as in all of its exports."""
    return any((place / "README.roboflow.txt").is_file() for place in (folder, folder.parent))


def image_size(path: str) -> tuple[int, int]:
    """(height, width) in pixels of the upright image. Raises InputError where the file cannot be read."""
    size = size_in_file(path)
    if size is None:
        raise InputError(f"cannot read the image {path}: restore the file, or take it and its labels away")
    return size[1], size[0]


def read_text(path: str | Path) -> str:
    """A text file's content. Raises InputError where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read ({type(error).__name__}: {error}): it must be text in UTF-8"
        ) from error


def optional(module: str) -> Any:
    """An imported module of supervision or of what comes with it. Raises InputError, with the remedy, without it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = str(error.name).split(".")[0]
        raise InputError(
            f"reading YOLO's and Pascal VOC's data sets needs the package {name}, which is not installed: "
            "pip install -e '.[data]'"
        ) from error
