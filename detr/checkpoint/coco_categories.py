"""COCO's categories as Detectron2 lists them, without its package of data, which takes two seconds to import."""

import functools
import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@functools.cache
def coco_categories() -> list[dict[str, Any]]:
    """Detectron2's COCO_CATEGORIES, things and stuff in the order of their ids: "id", "name", "isthing", "color"."""
    spec = find_spec("detectron2")
    folder = Path(next(iter(spec.submodule_search_locations or ())))  # type: ignore[union-attr]  # checked on import
    table: list[dict[str, Any]] = runpy.run_path(str(folder / "data" / "datasets" / "builtin_meta.py"))[
        "COCO_CATEGORIES"
    ]
    return table
