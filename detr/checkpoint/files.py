"""Reading and writing checkpoint files: no unrestricted unpickling, no half-written output."""

import argparse
import functools
import hashlib
import json
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from detr.errors import InputError
from detr.whole_files import cannot_write, whole_file

# In a folder of transformers', by preference; those with an index are split into several files.
WEIGHTS_IN_FOLDER = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)

WEIGHTS_OF_RUN = ("model_best.pth", "model_final.pth")  # by preference

_FOLDER = 0x10  # in an entry's attributes in a zip file

# What the pickles of Detectron2's model zoo hold: numpy arrays and plain values.
_NUMPY = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


def load_file(path: str, *, unsafe: bool = False) -> dict[str, Any]:
    """A checkpoint on the CPU, tensors and plain values only: .pth, .pt, .bin, .pkl (arrays) or .safetensors.

    Besides these, the one class allowed is argparse.Namespace, which the authors' training checkpoints
    hold. ``unsafe`` unpickles whatever a .pth asks for, which runs any code that is in it. Raises
    InputError for a file that is missing, unreadable, no dict or asks for other classes.
    """
    _check_is_there(path)
    try:
        content = _reader(path, unsafe)(path)
    except InputError:  # of a part of the checkpoint
        raise
    except (pickle.UnpicklingError, _Refused) as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"it asks for the class {wanted[1]}" if wanted else "it is no PyTorch file, or is damaged"
        raise InputError(
            f"{path} is refused, because {detail}; only tensors and plain values are loaded (converter.py has "
            "--unsafe-load for an old file of your own)"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for files that are not their own
        reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
        raise InputError(f"{path} cannot be read as a checkpoint ({reason}): is the file complete?") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a checkpoint's dict")
    return content


def damage(path: str) -> str | None:
    """Why a checkpoint file is not as it was written, in a sentence that names it; None where it seems whole.

    A zip file, as torch has written since 1.6, is compared with its checksums. One of another kind is loaded. A path
    with a scheme, such as s3://, is not looked at.
    """
    if "://" in path:
        return None
    try:
        _check_is_there(path)
        if zipfile.is_zipfile(path):
            _check_sums(path)
        else:
            load_file(path)
    except InputError as error:
        return str(error)
    return None


def _check_is_there(path: str) -> None:
    if not os.path.isfile(path):
        raise InputError(f"the weights file {path} does not exist")
    if os.path.getsize(path) == 0:
        raise InputError(f"{path} is empty: it holds no checkpoint")


def _check_sums(path: str) -> None:
    """Raises InputError where an entry of a zip file is not what its CRC-32 says, which torch does not look at."""
    stat = os.stat(path)
    if part := _damaged_part(path, stat.st_size, stat.st_mtime_ns):
        raise InputError(f"{path} is damaged: {part}; take another copy of it, or an earlier checkpoint")


@functools.lru_cache  # what a training goes on from is chosen, shown and loaded
def _damaged_part(path: str, size: int, time: int) -> str:
    """size, time: of the file, so that it is read again after it was written again."""
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            # Of what is marked as a folder, torch reads nothing and returns memory as it was.
            if folders := [entry.filename for entry in entries if entry.external_attr & _FOLDER]:
                return f"it has the folder {folders[0]} in place of a tensor"
            has_sums = any(entry.CRC for entry in entries)  # torch can be set not to write them
            name = file.testzip() if has_sums else None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError) as error:
        return f"it is no whole zip file ({error})"
    return f"the checksum of {name} does not fit its content" if name else ""


def _reader(path: str, unsafe: bool) -> Callable[[str], Any]:
    if path.endswith(".safetensors"):
        return load_safetensors
    if path.endswith(".index.json"):
        return functools.partial(_load_shards, unsafe=unsafe)
    if path.endswith(".pkl"):
        return _load_any_pickle if unsafe else _load_arrays
    return _load_unrestricted if unsafe else _load_torch


def _load_torch(path: str) -> Any:
    _check_kind(path)
    if zipfile.is_zipfile(path):
        _check_sums(path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_kind(path: str) -> None:
    """Raises InputError for a file that begins like none of PyTorch's, as a web page, and for a cut zip file."""
    with open(path, "rb") as file:
        start = file.read(16)
    if not start.startswith((b"PK", b"\x80")):
        raise InputError(f"{path} is no PyTorch file: it begins with {start!r}; was its download a web page?")
    if start.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is damaged: its end is missing; take another copy of it, or an earlier checkpoint")


def _load_unrestricted(path: str) -> Any:
    return torch.load(path, map_location="cpu", weights_only=False)


def _load_shards(path: str, unsafe: bool) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        part_of: dict[str, str] = json.load(file)["weight_map"]
    content: dict[str, Any] = {}
    for part in sorted(set(part_of.values())):
        content |= load_file(os.path.join(os.path.dirname(path), os.path.basename(part)), unsafe=unsafe)
    lost = [key for key in part_of if key not in content]
    if lost:
        raise InputError(f"{path} promises {lost[0]} in {part_of[lost[0]]}, which does not hold it: is that one whole?")
    return content


class _Refused(Exception):
    """A pickle asks for a class that is not allowed."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY:
            raise _Refused(f"GLOBAL {module}.{name} was not an allowed class")
        return super().find_class(module, name)


def _load_arrays(path: str) -> Any:
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy 2 on names that older pickles have for its parts
        return _ArrayUnpickler(file, encoding="latin1").load()


def _load_any_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")


def weights_in_folder(folder: str) -> str:
    """The weights file of a folder that transformers wrote. Raises InputError where there is none."""
    for name in WEIGHTS_IN_FOLDER:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    raise InputError(
        f"the folder {folder} holds no weights: of a folder of transformers' {WEIGHTS_IN_FOLDER[0]} or "
        f"{WEIGHTS_IN_FOLDER[1]} is read; otherwise name the file in it"
    )


def load_config_json(weights: str) -> dict[str, Any]:
    """The config.json beside a weights file; {} where there is none. Raises InputError for one that is damaged."""
    path = os.path.join(os.path.dirname(weights), "config.json")
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}): is the file complete?") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a {type(config).__name__}, not a model's configuration")
    return config


def sha256(path: str) -> str:
    """The hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def save_file(content: dict[str, Any], path: str, path_manager: Any = PathManager) -> None:
    """Writes a checkpoint in one step: a file of that name is always whole.

    Raises InputError where it cannot be written.
    """
    with whole_file(path, path_manager=path_manager) as file:
        torch.save(content, file)


def weights_of_run(folder: str) -> str:
    """The best checkpoint of a training's folder, else the last one; "" where there is none."""
    paths = (os.path.join(folder, name) for name in WEIGHTS_OF_RUN)
    return next(filter(os.path.isfile, paths), "")


def save_text(text: str, path: str, path_manager: Any = PathManager) -> None:
    """As ``save_file``, for text in UTF-8."""
    with whole_file(path, "w", path_manager) as file:
        file.write(text)


def save_folder(write: Callable[[str], None], path: str) -> None:
    """Lets ``write`` fill a folder and puts it in its place once it is whole, instead of one that was there.

    Raises InputError where it cannot be written.
    """
    path = os.path.realpath(path)
    with _place_for(path) as temporary:
        new, old = os.path.join(temporary, "new"), os.path.join(temporary, "old")
        os.mkdir(new)
        write(new)
        try:
            if os.path.exists(path):
                os.replace(path, old)
            os.replace(new, path)
        except BaseException:
            if os.path.exists(old):
                os.replace(old, path)
            raise


@contextmanager
def _place_for(path: str) -> Iterator[str]:
    """A folder beside ``path``, on the same disk, that is gone afterwards."""
    parent, name = os.path.split(path)
    try:
        with cannot_write(path):
            os.makedirs(parent, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.") as temporary:
                yield temporary
    except SafetensorError as error:  # it wraps the errors of the disk
        raise InputError(f"cannot write {path} ({error}): name another place, or free some space there") from error
