"""COCO JSON in the places where it usually lies, Roboflow's among them."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detr.data.coco_file import class_ids, coco_dicts, read_coco
from detr.data.formats.folder import SPLIT_FOLDERS, SPLIT_WORDS, DataFolder, Split, entries, split_of
from detr.errors import InputError

ROBOFLOW = "_annotations.coco.json"
OTHER_TASKS = ("captions_", "panoptic_", "person_keypoints_", "stuff_", "image_info_")
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
PARTS = ("", "images", "data")  # of the path between the data set's folder and its images
CHUNK, LONGEST = 2**20, 4096  # bytes that are read at a time, and of a file name


def find_coco_files(folder: Path) -> dict[str, Path]:
    """Split -> COCO file of a folder, in ``train``, ``val``, ``test``; a single file whose name tells no split is
    ``train``. Empty where there is none. Raises InputError where two files claim a split."""
    places = [folder, folder / "annotations", *(folder / name for name in SPLIT_FOLDERS)]
    found = [path for place in places for path in entries(place, {".json"})]
    found = [path for path in found if not path.name.startswith(OTHER_TASKS)]
    instances = [path for path in found if path.name.startswith("instances_")]
    files = [path for path in instances or found if first_image(path) is not None]
    if len(files) == 1:
        return {_split(folder, files[0]) or "train": files[0]}
    by_split: dict[str, Path] = {}
    for path in files:
        split = _split(folder, path)
        if split is None or split in by_split:
            reason = f"tells no split, and is not the only one beside {files[0 if path != files[0] else 1]}"
            raise InputError(
                f"{path} {reason if split is None else f'and {by_split[split]} are both of the split {split}'}: give "
                "the path of one file, or name them train.json, val.json and test.json"
            )
        by_split[split] = path
    return {split: by_split[split] for split in ("train", "val", "test") if split in by_split}


def _split(folder: Path, path: Path) -> str | None:
    return split_of(path.stem) or (SPLIT_WORDS.get(path.parent.name) if path.parent != folder else None)


def coco_folder(path: Path, files: Mapping[str, Path]) -> DataFolder:
    """path: that was recognized; files: split -> COCO file. Raises InputError where no folder holds the images."""
    roboflow = all(file.name == ROBOFLOW for file in files.values())
    every = [str(file) for file in files.values()]
    splits = {}
    for split, file in files.items():
        root = str(_image_root(file))
        read = partial(_read_roboflow, str(file), root, every) if roboflow else partial(_read, str(file), root)
        splits[split] = Split(str(file), read, str(file), root)
    read_names = partial(_roboflow_names, every) if roboflow else partial(_names, every[0])
    return DataFolder(str(path), "COCO (Roboflow)" if roboflow else "COCO", splits, read_names)


def first_image(path: Path) -> str | None:
    """The file name of the first image in a COCO file, found without parsing all of it; None where there is none."""
    rest = b""
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                rest += chunk
                if found := FILE_NAME.search(rest):
                    return str(json.loads(found[1]))
                rest = rest[-LONGEST:]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error}): restore the file") from error
    return None


def _image_root(file: Path) -> Path:
    """The folder to which the file names of images are relative. Raises InputError where none has the first image."""
    name = first_image(file)
    if name is None:
        raise InputError(
            f'{file} names no image ("file_name"): COCO\'s format is a dict with images, annotations and categories'
        )
    if os.path.isabs(name):
        return file.parent
    stem, own = file.stem.removeprefix("instances_"), split_of(file.stem)
    aliases = [stem, *(folder for folder in SPLIT_FOLDERS if split_of(folder) == own)]
    tops = [file.parent, file.parent.parent]
    # In the order of how much a place says about its split.
    places = [place / part / alias for place in tops for alias in aliases for part in PARTS]
    places += [place / part for place in tops for part in PARTS]
    for place in places:
        if (place / name).is_file():
            return place
    near = list(dict.fromkeys(str(place) for place in places if place.is_dir()))
    raise InputError(
        f"the image {name} of {file} is in none of the folders {', '.join(near)}: put the images beside the file, or "
        f"into {file.parent.parent / stem}"
    )


def _names(file: str) -> list[str]:
    content = read_coco(file)
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [names[key] for key in class_ids(content)]


def _read(file: str, root: str) -> list[dict[str, Any]]:
    content = read_coco(file)
    return coco_dicts(content, file, root, class_ids(content), extra_keys=("area",))


def _read_roboflow(file: str, root: str, every: Sequence[str]) -> list[dict[str, Any]]:
    content = read_coco(file)
    known = list(_roboflow_categories(every))
    contiguous = {key: index for index, key in enumerate(known)}
    return coco_dicts(content, file, root, contiguous, extra_keys=("area",))


def _roboflow_names(every: Sequence[str]) -> list[str]:
    return list(_roboflow_categories(every).values())


def _roboflow_categories(every: Sequence[str]) -> dict[Any, str]:
    """Category id -> name in the order of the ids, without the one that only names the group of all others.

    It has the id 0, other categories have its name as their supercategory, and no object in any file has it. Raises
    InputError where the files have different categories.
    """
    contents = [read_coco(file) for file in every]
    names = [{x["id"]: x["name"] for x in content["categories"]} for content in contents]
    for file, other in zip(every, names, strict=True):
        if other != names[0]:
            raise InputError(f"{file} and {every[0]} have different categories: export them together")
    groups = {x.get("supercategory") for x in contents[0]["categories"] if x["id"] != 0}
    used = {x["category_id"] for content in contents for x in content.get("annotations", [])}
    return {key: names[0][key] for key in sorted(names[0]) if key != 0 or key in used or names[0][key] not in groups}
