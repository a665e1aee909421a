"""Training and evaluation on Detectron2's DefaultTrainer."""

import detr

if getattr(detr, "__file__", None) is None:
    # Python prefers a folder of this name beside the script to an installed package, and then nothing is registered.
    raise ImportError(
        f"the folder {next(iter(detr.__path__))} is taken for the package detr: run your script from another folder "
        "than the one that holds it, or rename it"
    )

# isort: split
from typing import TYPE_CHECKING

from detr.lazy_imports import import_on_use

if TYPE_CHECKING:
    from detr.engine.command import main
    from detr.engine.defaults import parse_and_launch, setup
    from detr.engine.trainer import Trainer

__all__ = ["Trainer", "main", "parse_and_launch", "setup"]

__getattr__ = import_on_use(
    __name__, {"Trainer": "trainer", "main": "command", "parse_and_launch": "defaults", "setup": "defaults"}
)
