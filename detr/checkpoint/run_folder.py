"""The checkpoints in a training's folder: whether there are any, and which one to go on from."""

import logging
import os
import re
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from detr.checkpoint.files import damage, load_file
from detr.errors import InputError

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # the file that names the checkpoint to go on from
_OF_TRAINING = re.compile(r"model_(\d+|final|best)\.pth")


def holds_training(folder: str, path_manager: Any = PathManager) -> bool:
    """Whether a training has left checkpoints there, with or without ``last_checkpoint``; they may be damaged."""
    return bool(path_manager.exists(os.path.join(folder, LAST)) or _of_training(folder))


def checkpoint_to_resume(folder: str, path_manager: Any = PathManager) -> tuple[str, list[str]]:
    """The path of the checkpoint to go on from, "" where there is none, and why not from newer ones, a reason each.

    It is the one that ``last_checkpoint`` names if it is whole, else the newest of the training's that is. In a folder
    with a scheme, such as s3://, it is always the named one. Raises InputError where no checkpoint is whole.
    """
    reasons, candidates = [], _of_training(folder)
    named = _named(folder, path_manager)
    if "://" in folder:
        return os.path.join(folder, named) if named else "", []
    if named:
        path = os.path.join(folder, named)
        reason = damage(path)
        if reason is None:
            return path, []
        reasons.append(reason)
    elif os.path.exists(os.path.join(folder, LAST)):
        reasons.append(f"{os.path.join(folder, LAST)} names no file")
    elif candidates:
        reasons.append(f"{os.path.join(folder, LAST)} is missing")
    by_age = {path: _iteration(path) for path in candidates if os.path.basename(path) != named}
    # By name where the iteration cannot be read. Of the same iteration the best one was saved last.
    for path in sorted(by_age, key=lambda path: (by_age[path], not _is_numbered(path), path), reverse=True):
        reason = damage(path) or ("" if by_age[path] >= 0 else f"{path} holds no state of a training")
        if not reason:
            return path, reasons
        reasons.append(reason)
    if reasons:
        raise InputError(
            f"{folder} holds no checkpoint to go on from: {'; '.join(reasons)}. Copy a whole one there from elsewhere, "
            f"or start anew with another OUTPUT_DIR"
        )
    return "", []


def choose_for_all_ranks(folder: str, path_manager: Any = PathManager) -> str:
    """As ``checkpoint_to_resume``, with a warning of what is skipped; every rank calls it.

    The main process chooses, since each rank may see files appear at another moment.
    """
    chosen, reasons, error = "", list[str](), ""
    if comm.is_main_process():
        try:
            chosen, reasons = checkpoint_to_resume(folder, path_manager)
        except InputError as problem:
            error = str(problem)
    chosen, reasons, error = comm.all_gather((chosen, reasons, error))[0]
    if error:
        raise InputError(error)
    if reasons:
        logger.warning("going on from %s, the newest checkpoint that is whole: %s", chosen, "; ".join(reasons))
    return chosen


def _of_training(folder: str) -> list[str]:
    """Paths of files with the names that a training gives them."""
    if "://" in folder or not os.path.isdir(folder):
        return []
    return [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if _OF_TRAINING.fullmatch(name)]


def _named(folder: str, path_manager: Any) -> str:
    try:
        with path_manager.open(os.path.join(folder, LAST), "rb") as file:
            name = str(file.read().decode("utf-8", errors="replace").strip("\0 \t\r\n"))
    except OSError:
        return ""
    return name if name.isprintable() and "\ufffd" not in name else ""  # what is no text was damaged


def _is_numbered(path: str) -> bool:
    return os.path.basename(path)[len("model_")].isdecimal()


def _iteration(path: str) -> int:
    """The last one before the checkpoint was saved; -1 where the file does not tell, as one of weights alone."""
    try:
        # Of the tensors nothing is read here.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # damaged, or of an old format that cannot be mapped
        try:
            content = load_file(path)
        except InputError:
            return -1
    iteration = content.get("iteration") if isinstance(content, dict) else None
    return iteration if isinstance(iteration, int) else -1
