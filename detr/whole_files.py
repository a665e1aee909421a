"""Files that appear whole or not at all, and what is reported where a disk is full or fails."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import IO, Any

from detectron2.utils.file_io import PathManager

from detr.errors import DiskError, InputError

_OF_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.part")


@contextlib.contextmanager
def whole_file(path: str, mode: str = "wb", path_manager: Any = PathManager) -> Iterator[IO[Any]]:
    """A file to write, "wb" or "w" in UTF-8, that takes the place of ``path`` once it is whole and on the disk.

    path_manager: Detectron2's or one's own; it writes a path with a scheme, such as s3://, as it always does

    Raises InputError where it cannot be written, DiskError where that is the disk's fault; ``path`` is then as before.
    """
    if "://" in path:
        with path_manager.open(path, mode) as file:
            yield file
        return
    encoding = None if "b" in mode else "utf-8"
    path = os.path.realpath(path)  # a link stays one
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
    try:
        with cannot_write(path):
            os.makedirs(folder, exist_ok=True)
            with open(temporary, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(folder)


def copy_whole(source: str, target: str, path_manager: Any = PathManager) -> None:
    """Copies a file in one step; errors as of ``whole_file``."""
    if "://" in target:
        path_manager.copy(source, target, overwrite=True)
        return
    with open(source, "rb") as file, whole_file(target) as copy:
        shutil.copyfileobj(file, copy)


def remove_leftovers(folder: str) -> None:
    """Removes what a killed process has left of its ``whole_file`` in a folder that nobody else writes to."""
    if "://" in folder or not os.path.isdir(folder):
        return
    for name in os.listdir(folder):
        if _LEFTOVER.fullmatch(name):
            with contextlib.suppress(OSError):
                os.remove(os.path.join(folder, name))


@contextlib.contextmanager
def cannot_write(path: str) -> Iterator[None]:
    """Around the writing of a file: turns its errors into an InputError that names it.

    Where the disk is full, has failed or became read-only, that is a DiskError. Other exceptions pass.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (cause := disk_error(error)) is not None:
            raise _named(cause, path) from error
        if isinstance(error, OSError):
            reason = error.strerror or error
            raise InputError(f"cannot write {path} ({reason}): name another place, or make it writable") from error
        raise


@contextlib.contextmanager
def name_disk_errors(path: str) -> Iterator[None]:
    """Around work that writes into ``path``, among other things: an error of the disk becomes a DiskError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (cause := disk_error(error)) is None:
            raise
        raise _named(cause, cause.filename or path) from error


def disk_error(error: BaseException | None) -> OSError | None:
    """What the disk has said, in a chain of exceptions: torch raises one of its own after it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_DISK:
            return error
        error = error.__cause__ or error.__context__
    return None


def _named(error: OSError, path: str) -> DiskError:
    return DiskError(
        f"cannot write {path} ({error.strerror}{_free(path)}): free some space, or name another folder; earlier files "
        "are whole, and a training goes on from them with --resume"
    )


def _free(path: str) -> str:
    """ "; 3 of 953,869 MB are free", "" where it is not known."""
    try:
        while not os.path.exists(path):
            path = os.path.dirname(path) or "."
        usage = shutil.disk_usage(path)
    except OSError:
        return ""
    return f"; {usage.free >> 20:,} of {usage.total >> 20:,} MB are free"


def _sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # some network file systems do not have it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
