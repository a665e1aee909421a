"""The configs in OUTPUT_DIR: that of the training is config.yaml, and later runs in its folder write their own."""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager


@contextlib.contextmanager
def keep_config(folder: str, kept: bool) -> Iterator[None]:
    """Inside, config.yaml may be written; where it is ``kept``, it afterwards is as it was, or is not there."""
    path = os.path.join(folder, "config.yaml")
    before = _read(path) if kept else None
    try:
        yield
    finally:
        if kept and comm.is_main_process() and before is not None:
            _write(path, before)
        elif kept and comm.is_main_process() and PathManager.isfile(path):
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
        _write(os.path.join(folder, "config_eval.yaml"), text)
        return
    last, number = _read(os.path.join(folder, "config.yaml")), 1
    while (content := _read(path := os.path.join(folder, f"config_resume_{number}.yaml"))) is not None:
        last, number = content, number + 1
    if text != last:
        _write(path, text)


def _read(path: str) -> str | None:
    if not PathManager.isfile(path):
        return None
    with PathManager.open(path) as file:
        return str(file.read())


def _write(path: str, text: str) -> None:
    with PathManager.open(path, "w") as file:
        file.write(text)
