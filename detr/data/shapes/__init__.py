"""The `shapes` data set: a small COCO, generated on first use, for trying DETR without a download.

`register_shapes()` gives Detectron2 `shapes_train` (4000 images) and `shapes_val` (500), with objects to find, and
`shapes_train_panoptic` and `shapes_val_panoptic`, the same images with every pixel's thing or stuff.
Nothing is generated until one is loaded, or `ensure_shapes()` is called. The files are in COCO's own
formats, so that any COCO tool reads them:

    shapes/
      info.json                                           version, seed and image counts
      train/000000000001.jpg ...   val/...                128 x 128 px
      annotations/instances_{train,val}.json              things: boxes, polygons, RLEs, crowds
      annotations/panoptic_{train,val}.json               things and stuff
      panoptic_{train,val}/000000000001.png ...           id = r + 256 g + 65536 b, 0 = void

`shapes_drawing` draws the scenes, `shapes_writing` writes the files. Every image depends on (seed, split,
index) alone. Files are the same byte for byte from run to run; other versions of numpy or Pillow may round a
pixel differently.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import portalocker
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.datasets.coco_panoptic import load_coco_panoptic_json
from iopath.common.file_io import file_lock

from detr.data.shapes.drawing import CATEGORIES
from detr.data.shapes.writing import SPLITS, VERSION, write_json, write_split
from detr.errors import InputError

SEED = 0
# The names registered with Detectron2
SHAPES = tuple(f"shapes_{split}{task}" for split in SPLITS for task in ("", "_panoptic"))
COUNTS = {"train": 4000, "val": 500}  # images in each split

_STALE_SECONDS = 3600  # a writer needs well under a minute

_log = logging.getLogger(__name__)


def register_shapes() -> None:
    """Registers the data sets with Detectron2; a second call changes nothing.

    The folder is chosen here, from the environment (see `datasets_root`); nothing is written.

    Metadata follow `coco_panoptic_standard`: things have the contiguous ids 0..T-1 and stuff T..T+S-1 in one
    common space, which `stuff_classes` and `stuff_colors` list whole. `thing_classes` and `thing_colors`
    differ from it: they hold the T things alone, as the box and mask tasks want them.
    """
    folder = datasets_root() / "shapes"
    for split in SPLITS:
        _register(f"shapes_{split}", folder, split, _load, evaluator_type="coco")
        _register(f"shapes_{split}_panoptic", folder, split, _load_panoptic, evaluator_type="coco_panoptic_seg")


def _register(
    name: str, folder: Path, split: str, load: Callable[[Path, str], list[dict[str, Any]]], evaluator_type: str
) -> None:
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, partial(load, folder, split))
    MetadataCatalog.get(name).set(
        json_file=str(folder / "annotations" / f"instances_{split}.json"),
        image_root=str(folder / split),
        panoptic_json=str(folder / "annotations" / f"panoptic_{split}.json"),
        panoptic_root=str(folder / f"panoptic_{split}"),
        evaluator_type=evaluator_type,
        ignore_label=255,
        label_divisor=1000,
        **_class_metadata(),
    )


def datasets_root() -> Path:
    """The folder that holds, or will hold, `shapes`: $DETECTRON2_DATASETS, or else the user's cache.

    Shared folders of data sets are often read-only: one that is so, and has no `shapes`, is passed over.
    """
    root = _root_of_user()
    if root is not None:
        existing = next(path for path in (root, *root.parents) if os.path.exists(path))
        writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
        if writable or os.path.exists(root / "shapes" / "info.json"):
            return root
    return _cache_root()


def _root_of_user() -> Path | None:
    value = os.environ.get("DETECTRON2_DATASETS")
    return Path(os.path.expanduser(value)).absolute() if value else None


def _cache_root() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # unset; or relative, which the XDG specification has ignored
        cache = os.path.expanduser("~/.cache")
    return Path(cache).absolute() / "detectron2-detr"


def ensure_shapes(
    root: Path | None = None,
    *,
    seed: int | None = None,
    train_images: int | None = None,
    val_images: int | None = None,
) -> Path:
    """Generates the data set if it is missing, and returns its folder, ROOT/shapes.

    Call it before building an evaluator, which reads `json_file` at once. Processes that start together wait
    for the first of them; a killed one leaves nothing that could be taken for a data set.

    Args:
        root: parent of the `shapes` folder; None: where it is registered, or else `datasets_root()`.
        seed, train_images, val_images: None: those of the data set that is there, or the usual ones for a
            new one. A number that the data set there does not have is an InputError, for nothing is deleted.
    """
    if root is not None:
        folder = Path(root).absolute() / "shapes"
    elif "shapes_train" in DatasetCatalog:
        folder = Path(MetadataCatalog.get("shapes_train").image_root).parent
    else:
        folder = datasets_root() / "shapes"
    wanted = {"version": VERSION, "seed": seed, "train_images": train_images, "val_images": val_images}
    usual = {"seed": SEED, "train_images": COUNTS["train"], "val_images": COUNTS["val"]}
    info = {key: usual[key] if value is None else value for key, value in wanted.items()}
    try:
        if _is_there(folder, wanted):  # asked without the lock first: the place may be read-only
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder)):
            if not _is_there(folder, wanted):  # while this process waited, another may have written it
                _remove_stale(folder)
                _generate(folder, info)
    except (OSError, portalocker.LockException) as error:
        raise InputError(
            f"cannot write the shapes data set to {folder} ({error}): set DETECTRON2_DATASETS to a folder "
            "that is writable and has 100 MB free"
        ) from error
    return folder


def _is_there(folder: Path, wanted: Mapping[str, int | None]) -> bool:
    """Whether `folder` holds the whole data set; InputError if it holds another one, or something else."""
    if not os.path.isdir(folder):
        if os.path.lexists(folder):
            raise InputError(f"{folder} is not a folder: move it away to make room for the shapes data set")
        return False
    if not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / "info.json").read_text())
        found = {key: found[key] for key in wanted}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{folder} holds something other than the shapes data set: move it away, or set "
            "DETECTRON2_DATASETS to another folder"
        ) from None
    wrong = [key for key, value in wanted.items() if value is not None and found[key] != value]
    if wrong:
        differences = ", ".join(f"{key} {found[key]}, not {wanted[key]}" for key in wrong)
        raise InputError(f"{folder} holds another shapes data set ({differences}): remove that folder")
    return True


def _remove_stale(folder: Path) -> None:
    """Removes what writers that were killed long ago left beside `folder`. Called under the lock."""
    for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
        # The age is for file systems where a lock does not reach other machines.
        if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


def _generate(folder: Path, info: dict[str, int]) -> None:
    """Writes the data set beside `folder`, then renames it into place: it is there whole or not at all."""
    counts = {split: info[f"{split}_images"] for split in SPLITS}
    refused = _root_of_user()
    if refused is not None and folder.parent == _cache_root() != refused:
        _log.warning("DETECTRON2_DATASETS=%s is not writable: using the cache for shapes", refused)
    _log.info("Generating the shapes data set in %s (%d + %d images)", folder, *counts.values())
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.partial-", dir=folder.parent) as temporary:
        # Not the temporary folder itself: that one is private to this user, and stays so when renamed.
        new = Path(temporary) / folder.name
        new.mkdir()
        for split, count in counts.items():
            write_split(new, split, count, info["seed"])
        write_json(new / "info.json", info)
        try:
            new.rename(folder)
        except OSError:
            # Where locks do not work another process may have been first; its files are the same.
            if not _is_there(folder, info):
                raise
    _log.info("Generated the shapes data set in %.1f s", time.perf_counter() - start)


def _class_metadata() -> dict[str, Any]:
    """The metadata that describe classes; see `register_shapes`."""
    ordered = sorted(CATEGORIES, key=lambda category: (not category.isthing, category.id))
    contiguous = {category.id: i for i, category in enumerate(ordered)}
    things = [category for category in ordered if category.isthing]
    stuff = [category for category in ordered if not category.isthing]
    return {
        "thing_classes": [category.name for category in things],
        "thing_colors": [list(category.color) for category in things],
        "thing_dataset_id_to_contiguous_id": {category.id: contiguous[category.id] for category in things},
        "stuff_classes": [category.name for category in ordered],
        "stuff_colors": [list(category.color) for category in ordered],
        "stuff_dataset_id_to_contiguous_id": {category.id: contiguous[category.id] for category in stuff},
    }


def _load(folder: Path, split: str) -> list[dict[str, Any]]:
    """Detectron2's dicts of one split, with `pan_seg_file_name` and `segments_info` beside the annotations.

    Boxes are XYWH in px; category ids, of annotations and of segments, are contiguous.
    """
    json_file = str(folder / "annotations" / f"instances_{split}.json")
    panoptic = {entry["image_id"]: entry for entry in _load_panoptic(folder, split)}
    dicts = load_coco_json(json_file, str(folder / split), f"shapes_{split}")
    # Both loaders name the same image file, so that the union contradicts neither.
    return [{**entry, **panoptic[entry["image_id"]]} for entry in dicts]


def _load_panoptic(folder: Path, split: str) -> list[dict[str, Any]]:
    """Detectron2's dicts of one split with `pan_seg_file_name` and `segments_info`, whose ids are contiguous."""
    ensure_shapes(folder.parent)
    json_file, pngs = folder / "annotations" / f"panoptic_{split}.json", folder / f"panoptic_{split}"
    return list(load_coco_panoptic_json(str(json_file), str(folder / split), str(pngs), _class_metadata()))
