"""A lock on OUTPUT_DIR, so that two trainings do not write over each other's files."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time

from detr.errors import InputError
from detr.whole_files import name_disk_errors

logger = logging.getLogger(__name__)

LOCK = ".lock"
_LOCKED = (errno.EACCES, errno.EAGAIN)  # another process has it

# Open descriptors by process and path. To close any of a file would release its lock.
_held: dict[tuple[int, str], int] = {}


def lock_folder(folder: str) -> None:
    """Makes ``folder`` this process's own until ``unlock_folder`` or its end, however it ends.

    Processes that it forks do not hold it.

    The lock is a record lock of the operating system on FOLDER/.lock, which names the process. A file that a killed
    training has left is no obstacle. Remote folders ("s3://...") and file systems without locks go without.

    Raises InputError where another process has the folder or it cannot be written, DiskError where the disk is full.
    """
    if "://" in folder:
        logger.debug("%s is not locked: it is no local folder", folder)
        return
    path = _lock_file(folder)
    if (os.getpid(), path) in _held:
        return
    descriptor = _take(folder, path)
    if descriptor is None:
        return
    _held[os.getpid(), path] = descriptor
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)


def unlock_folder(folder: str) -> None:
    """Ends what ``lock_folder`` did, where it did."""
    if (descriptor := _held.pop((os.getpid(), _lock_file(folder)), None)) is not None:
        os.close(descriptor)


def check_unlocked(folder: str) -> None:
    """Raises InputError where another process has the folder."""
    path = _lock_file(folder)
    if "://" in folder or (os.getpid(), path) in _held or not os.path.exists(path):
        return
    if (descriptor := _take(folder, path)) is not None:
        os.close(descriptor)


def _lock_file(folder: str) -> str:
    return os.path.join(os.path.realpath(folder), LOCK)


def _take(folder: str, path: str) -> int | None:
    """An open descriptor of the locked file; None where the file system has no locks."""
    try:
        with name_disk_errors(folder):
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError as error:
        raise InputError(f"OUTPUT_DIR {folder} cannot be written ({error.strerror}): name another one") from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError as refusal:
        if refusal.errno not in _LOCKED:
            os.close(descriptor)
            logger.debug("%s is not locked: %s", folder, refusal.strerror)
            return None
    holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
    os.close(descriptor)
    raise InputError(
        f"OUTPUT_DIR {folder} belongs to a training that runs ({holder or 'which did not say more'}): wait for its "
        "end, stop it, or name another folder"
    )
