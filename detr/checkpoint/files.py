"""Reading and writing checkpoint files: no unrestricted unpickling, no half-written output."""

import argparse
import os
import pickle
import tempfile
from typing import Any

import torch

from detr.errors import InputError


def load_file(path: str) -> dict[str, Any]:
    """A checkpoint on the CPU, tensors and plain values only.

    Besides these, the one class allowed is argparse.Namespace, which the authors' training checkpoints
    hold. Raises InputError for a file that is missing, unreadable, no dict or asks for other classes.
    """
    if not os.path.isfile(path):
        raise InputError(f"the weights file {path} does not exist")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0]
        wanted = _between(reason, "GLOBAL ", " was not an allowed")
        detail = f"it asks for the class {wanted}" if wanted else "it is no PyTorch file, or is damaged"
        raise InputError(f"{path} is refused, because {detail}; only tensors and plain values are loaded") from error
    except Exception as error:  # torch raises many kinds for files that are not its own
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"{path} cannot be read as a PyTorch checkpoint ({reason}): is the file complete?") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint's dict")
    return content


def save_file(content: dict[str, Any], path: str) -> None:
    """Writes a checkpoint in one step: a file of that name is always whole."""
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{os.path.basename(path)}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
        os.chmod(temporary, 0o644)  # mkstemp's 0o600 would keep colleagues out
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _between(text: str, start: str, end: str) -> str:
    _, found, rest = text.partition(start)
    return rest.partition(end)[0].strip() if found else ""
