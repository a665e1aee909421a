"""A lock on OUTPUT_DIR, so that two trainings do not write over each other's files."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time

from detr.errors import InputError

logger = logging.getLogger(__name__)

LOCK = ".lock"

# Open descriptors by process and path. To close any of a file would release its lock.
_held: dict[tuple[int, str], int] = {}


def lock_folder(folder: str) -> None:
    """Makes ``folder`` this process's own until it ends, however it ends; processes that it forks do not hold it.

    The lock is a record lock of the operating system on FOLDER/.lock, which names the process. A file that a killed
    training has left is no obstacle. Remote folders ("s3://...") and file systems without locks go without.

    Raises InputError where another process has the folder.
    """
    if "://" in folder:
        logger.debug("%s is not locked: it is no local folder", folder)
        return
    path = os.path.join(os.path.realpath(folder), LOCK)
    if (os.getpid(), path) in _held:
        return
    os.makedirs(folder, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            os.close(descriptor)
            logger.debug("%s is not locked: %s", folder, error.strerror)
            return
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise InputError(
            f"OUTPUT_DIR {folder} belongs to a training that runs ({holder or 'which did not say more'}): wait for its "
            "end, stop it, or name another folder"
        ) from None
    _held[os.getpid(), path] = descriptor
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
