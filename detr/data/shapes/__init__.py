"""The `shapes` data set: a small COCO that is generated on first use, to try DETR without a download.

`shapes_train` (4000 images) and `shapes_val` (500) have boxes and masks; `shapes_train_panoptic` and
`shapes_val_panoptic` are the same images with things and stuff. `shapes/` holds info.json (version, seed, image
counts) and what COCO's folder holds, in COCO's formats: annotations/{instances,panoptic}_{train,val}.json,
{train,val}/*.jpg of 128 x 128 px, panoptic_{train,val}/*.png. All files are the same to the byte wherever the
versions of numpy and Pillow are the same.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import portalocker
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_coco_panoptic
from iopath.common.file_io import file_lock

from detr.errors import InputError

VERSION = 1  # increase it when the generated files change
SHAPES = ("shapes_train", "shapes_val", "shapes_train_panoptic", "shapes_val_panoptic")

# As in the panoptic JSON. The ids have gaps, as COCO's do: code that forgets to map them to 0, 1, ... fails.
CATEGORIES: tuple[dict[str, Any], ...] = (
    {"id": 1, "name": "disc", "supercategory": "shape", "isthing": 1, "color": [214, 45, 85]},
    {"id": 2, "name": "square", "supercategory": "shape", "isthing": 1, "color": [240, 130, 40]},
    {"id": 4, "name": "triangle", "supercategory": "shape", "isthing": 1, "color": [155, 89, 182]},
    {"id": 7, "name": "star", "supercategory": "shape", "isthing": 1, "color": [235, 230, 60]},
    {"id": 9, "name": "sky", "supercategory": "landscape", "isthing": 0, "color": [120, 180, 235]},
    {"id": 12, "name": "water", "supercategory": "landscape", "isthing": 0, "color": [40, 90, 160]},
    {"id": 17, "name": "grass", "supercategory": "landscape", "isthing": 0, "color": [70, 150, 60]},
)
THINGS, STUFF = CATEGORIES[:4], CATEGORIES[4:]

logger = logging.getLogger(__name__)


def register_shapes() -> None:
    """Registers the data sets with Detectron2 in $DETECTRON2_DATASETS/shapes, or else in ~/.cache.

    It touches no file, and a second call changes nothing. The metadata follow `coco_panoptic_standard`, except that
    `thing_classes` holds things alone, as evaluators of boxes and masks expect.
    """
    if SHAPES[0] in DatasetCatalog:
        return
    metadata = {
        "thing_classes": [category["name"] for category in THINGS],
        "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(THINGS)},
        "stuff_classes": [category["name"] for category in CATEGORIES],
        "stuff_colors": [category["color"] for category in CATEGORIES],
        "stuff_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(STUFF, len(THINGS))},
    }
    root = os.environ.get("DETECTRON2_DATASETS") or "~/.cache/detectron2-detr"
    folder = os.path.join(os.path.expanduser(root), "shapes")
    for split in ("train", "val"):
        images, pngs = f"{folder}/{split}", f"{folder}/panoptic_{split}"
        instances, panoptic = (f"{folder}/annotations/{kind}_{split}.json" for kind in ("instances", "panoptic"))
        register_coco_instances(f"shapes_{split}", metadata, instances, images)
        register_coco_panoptic(f"shapes_{split}_panoptic", metadata, images, pngs, panoptic, instances)
    for name in SHAPES:
        DatasetCatalog[name] = partial(_load, DatasetCatalog[name])


def _load(load: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    ensure_shapes()
    return load()


def ensure_shapes(root: Path | None = None, train_images: int = 4000, val_images: int = 500) -> Path:
    """Generates the data set where it is missing, and returns its folder, ROOT/shapes.

    Processes that start together generate it once, and a killed process leaves nothing that is taken for it.
    Raises InputError where the folder cannot be written, or holds something else.

    Args:
        root: parent of the folder; None: where the data set is registered.
        train_images, val_images: number of images to generate; an existing data set is kept as it is.
    """
    folder = (root / "shapes" if root else Path(MetadataCatalog.get(SHAPES[0]).image_root).parent).absolute()
    try:
        if _is_generated(folder):  # without the lock, because the parent may be read-only
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if not _is_generated(folder):  # another process may have generated it in the meantime
                from detr.data.shapes.generation import write_shapes  # not needed by `import detr`

                logger.info("Generating the shapes data set in %s (%d + %d images)", folder, train_images, val_images)
                unfinished = folder.with_name("shapes.partial")
                shutil.rmtree(unfinished, ignore_errors=True)  # left by a killed process
                write_shapes(unfinished, {"train": train_images, "val": val_images})
                unfinished.rename(folder)
    except (OSError, portalocker.LockException) as error:
        raise InputError(
            f"cannot write the shapes data set to {folder} ({error}): set DETECTRON2_DATASETS to a folder "
            "that is writable and has 100 MB free"
        ) from error
    return folder


def _is_generated(folder: Path) -> bool:
    """Whether `folder` holds the data set. Raises InputError where it holds something else."""
    if not os.path.lexists(folder):
        return False
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if json.loads((folder / "info.json").read_text())["version"] == VERSION:
            return True
    raise InputError(
        f"{folder} is not version {VERSION} of the shapes data set: move it away, or set DETECTRON2_DATASETS to "
        "another folder"
    )
