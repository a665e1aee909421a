"""The configs in OUTPUT_DIR: that of the training is config.yaml, and later runs in its folder write their own."""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from detr.checkpoint.files import save_text
from detr.whole_files import copy_whole


@contextlib.contextmanager
def keep_config(folder: str, kept: bool) -> Iterator[None]:
    """Inside, config.yaml may be written; where it is ``kept``, it afterwards is as it was, or is not there."""
    path = os.path.join(folder, "config.yaml")
    if not kept or not comm.is_main_process():
        yield
        return
    # On a disk there is a copy meanwhile, so that it comes back from a full one too.
    aside = "" if "://" in folder else os.path.join(folder, ".config.yaml.kept")
    before = None if aside else _read(path)
    if aside and os.path.isfile(path) and not os.path.isfile(aside):  # else the copy is a killed run's
        copy_whole(path, aside)
    try:
        yield
    finally:
        if before is not None:
            save_text(before, path)
        elif aside and os.path.isfile(aside):
            os.replace(aside, path)
        elif PathManager.isfile(path):
            PathManager.rm(path)


def save_config(cfg: CfgNode, run: Literal["eval", "resume"]) -> None:
    """Writes the config of an evaluation or of a resumed training to OUTPUT_DIR.

    That of the last evaluation is config_eval.yaml. Those of resumed trainings are config_resume_1.yaml and so on, one
    for each that differs from the config before it.
    """
    if not comm.is_main_process():
        return
    folder, text = cfg.OUTPUT_DIR, str(cfg.dump())
    if run == "eval":
        save_text(text, os.path.join(folder, "config_eval.yaml"))
        return
    last, number = _read(os.path.join(folder, "config.yaml")), 1
    while (content := _read(path := os.path.join(folder, f"config_resume_{number}.yaml"))) is not None:
        last, number = content, number + 1
    if text != last:
        save_text(text, path)


def _read(path: str) -> str | None:
    if not PathManager.isfile(path):
        return None
    with PathManager.open(path) as file:
        return str(file.read())
