"""Weights from the network: the released models by name, ``torchvision://`` and ``detr://``, and the download."""

import difflib
import hashlib
import logging
import os
import re
import sys
from dataclasses import dataclass
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse

import torch
from detectron2.utils.file_io import PathManager
from iopath.common.download import download
from iopath.common.file_io import file_lock, get_cache_dir
from portalocker.exceptions import LockException

from detr.checkpoint.files import sha256
from detr.checkpoint.path_handlers import TORCHVISION, ZOO
from detr.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ZooModel:
    """A released model; AP and PQ in percent on COCO val 2017, as the authors publish them."""

    name: str
    config: str  # relative to configs/
    url: str
    parameters: float  # in millions
    box_ap: float
    mask_ap: float | None = None
    pq: float | None = None
    num_classes: int = 80  # without no-object

    @property
    def dc5(self) -> bool:
        """Whether res5 is dilated."""
        return "DC5" in self.name

    @property
    def hash_prefix(self) -> str:
        """The first digits of the file's SHA-256, which end its name."""
        return hash_in_name(self.url)


def released_file(path: str) -> ZooModel | None:
    """The released model whose weights file has the name of this one."""
    name = os.path.basename(path)
    return next((model for model in RELEASED.values() if model.url.endswith(f"/{name}")), None)


def hash_in_name(url: str) -> str:
    """``.../resnet101-63fe2227.pth`` -> ``63fe2227``, as PyTorch's published weights are named."""
    return url.rpartition("-")[2].partition(".")[0]


def entry(name: str) -> ZooModel:
    """The released model of that name. Raises InputError for an unknown one, with those that come near."""
    if name not in RELEASED:
        hint = near_name(str(name))
        asked = f"; did you mean {hint}?" if hint else "."
        raise InputError(f"no released model is named {name!r}{asked} There are {', '.join(RELEASED)}")
    return RELEASED[name]


def near_name(name: str) -> str | None:
    """The released model with the name nearest to ``name``."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower().rpartition("/")[2].replace("resnet", "r"))

    plain_names = {plain(known): known for known in RELEASED}
    near = difflib.get_close_matches(plain(name), plain_names, n=1, cutoff=0.7)
    return plain_names[near[0]] if near else None


def local_path(path: str) -> str:
    """The file or folder here that ``path`` stands for: itself, or what was downloaded for a URL or a name.

    Raises InputError for what is not there, and for what cannot be downloaded. A URL whose file name ends in the
    beginning of its SHA-256, as PyTorch's published weights have it, is held to that.
    """
    if "://" not in path:
        if not os.path.exists(path):
            raise InputError(f"there is no file or folder {path}{missing_hint(path)}")
        return path
    hashed = re.fullmatch(r"https?://[^\s?]+-([0-9a-f]{8,64})\.pth(?:\?\S*)?", path)
    if hashed:
        return fetch(path, hashed[1])
    try:
        if "?" in path and path.startswith(("http://", "https://", "ftp://")):
            # Detectron2's handler would cut the file's name out of the parameters.
            place = cache_path(path)
            with file_lock(place):
                return str(download(path, os.path.dirname(place), filename=os.path.basename(place)))
        return str(PathManager.get_local_path(path))
    except (URLError, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(
            f"cannot download the weights {path} ({reason}): check the network, or fetch the file by other means and "
            "name it instead"
        ) from error


def missing_hint(path: str) -> str:
    """A hint for a path that does not exist."""
    near = near_name(path)
    if near:
        return f"; did you mean {ZOO}{near}?"
    return ": check the path (a model on the transformers hub must be downloaded as a folder first)"


def torchvision_url(path: str) -> str:
    """The address of the weights behind ``torchvision://NAME``. Raises InputError for an unknown name."""
    import torchvision  # takes two seconds

    name = path.removeprefix(TORCHVISION)
    try:
        return str(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)
    except (ValueError, AttributeError) as error:
        raise InputError(f"torchvision has no ImageNet weights named {name!r}: try {TORCHVISION}resnet50") from error


def parse_zoo_path(path: str) -> ZooModel:
    """The released model behind ``detr://NAME``. Raises InputError for an unknown name."""
    return entry(path.removeprefix(ZOO))


def fetch(url: str, hash_prefix: str) -> str:
    """The local path of the file behind ``url``, downloaded if it is not there yet.

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
    """Where Detectron2's own handler of ``https://`` puts the file: $FVCORE_CACHE, or ~/.torch/iopath_cache.

    For a URL with parameters, which may be all that names the file, a digest of the URL is put before the name.
    """
    plain, parameters, _ = url.partition("?")
    folder, name = os.path.dirname(urlparse(plain).path.lstrip("/")), plain.split("/")[-1]
    if parameters:
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    return os.path.join(get_cache_dir(), folder, name)


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


_AUTHORS = "https://dl.fbaipublicfiles.com/detr/"
_BOXES = "COCO-Detection/"
_PANOPTIC = "COCO-PanopticSegmentation/"

RELEASED = {
    model.name: model
    for model in (
        ZooModel("detr_R_50", _BOXES + "detr_R_50.yaml", _AUTHORS + "detr-r50-e632da11.pth", 41.52, 42.0),
        ZooModel("detr_R_50_DC5", _BOXES + "detr_R_50_DC5.yaml", _AUTHORS + "detr-r50-dc5-f0fb7ef5.pth", 41.52, 43.3),
        ZooModel("detr_R_101", _BOXES + "detr_R_101.yaml", _AUTHORS + "detr-r101-2c7b67e5.pth", 60.46, 43.5),
        ZooModel(
            "detr_R_101_DC5", _BOXES + "detr_R_101_DC5.yaml", _AUTHORS + "detr-r101-dc5-a2e86def.pth", 60.46, 44.9
        ),
        ZooModel(
            "detr_R_50_panoptic",
            _PANOPTIC + "detr_R_50.yaml",
            _AUTHORS + "detr-r50-panoptic-00ce5173.pth",
            parameters=42.90,
            box_ap=38.8,
            mask_ap=31.1,
            pq=43.4,
            num_classes=133,
        ),
        ZooModel(
            "detr_R_50_DC5_panoptic",
            _PANOPTIC + "detr_R_50_DC5.yaml",
            _AUTHORS + "detr-r50-dc5-panoptic-da08f1b1.pth",
            parameters=42.90,
            box_ap=40.2,
            mask_ap=31.9,
            pq=44.6,
            num_classes=133,
        ),
        ZooModel(
            "detr_R_101_panoptic",
            _PANOPTIC + "detr_R_101.yaml",
            _AUTHORS + "detr-r101-panoptic-40021d53.pth",
            parameters=61.84,
            box_ap=40.1,
            mask_ap=33.0,
            pq=45.1,
            num_classes=133,
        ),
    )
}
