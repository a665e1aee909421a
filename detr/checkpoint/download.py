"""Files from the network: downloaded once into Detectron2's cache, and checked."""

import logging
import os
import sys
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse

import torch
from iopath.common.file_io import file_lock, get_cache_dir
from portalocker.exceptions import LockException

from detr.checkpoint.files import sha256
from detr.errors import InputError

logger = logging.getLogger(__name__)


def fetch(url: str, hash_prefix: str) -> str:
    """The local path of the file behind ``url``, which is downloaded where it is not there yet.

    hash_prefix: the first hexadecimal digits of the file's SHA-256

    However many processes of a machine ask at once, one downloads and the others wait. A download that is
    interrupted leaves nothing under the path, and the next call starts it again. A file that lies there
    already, downloaded by Detectron2 or put there by hand, is taken without asking the network.

    Raises InputError where the file cannot be downloaded, written or read, and where its hash is another; a
    file that was there is never deleted.
    """
    path = cache_path(url)
    if not os.path.isfile(path):
        _download(url, path, hash_prefix)
    _check(path, url, hash_prefix)
    return path


def cache_path(url: str) -> str:
    """Where Detectron2's own handler of ``https://`` puts the file: $FVCORE_CACHE, or ~/.torch/iopath_cache."""
    folder = os.path.dirname(urlparse(url).path.lstrip("/"))
    return os.path.join(get_cache_dir(), folder, url.split("/")[-1])


def _download(url: str, path: str, hash_prefix: str) -> None:
    try:
        with file_lock(path):  # the lock that Detectron2's handler takes
            if os.path.isfile(path):  # another process was faster
                return
            logger.info("Downloading %s to %s", url, path)
            # Writes another file beside, and moves it once it is whole: torch's only check of that is the hash.
            torch.hub.download_url_to_file(url, path, hash_prefix, progress=sys.stderr.isatty())
    except RuntimeError as error:
        raise InputError(_failure(url, path, f"cut off or altered on its way: {error}")) from error
    except HTTPError as error:
        error.close()
        raise InputError(_failure(url, path, str(error))) from error
    except URLError as error:
        raise InputError(_failure(url, path, str(error.reason))) from error
    except (OSError, HTTPException, LockException) as error:
        raise InputError(_failure(url, path, f"{type(error).__name__}: {error}")) from error


def _failure(url: str, path: str, reason: str) -> str:
    reason = " ".join(reason.split())
    return (
        f"cannot download {url} ({reason}): check the network and the disk, or fetch the file by other means and put "
        f"it at {path}"
    )


def _check(path: str, url: str, hash_prefix: str) -> None:
    try:
        found = sha256(path)[: len(hash_prefix)]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): see to its permissions, or delete it") from error
    if found != hash_prefix:
        raise InputError(
            f"{path} is cut off or another file: its SHA-256 begins with {found}, that of {url} with {hash_prefix}; "
            "delete it, and it is downloaded again"
        )
