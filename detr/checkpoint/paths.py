"""Names that stand for weights on the network, for Detectron2's path manager. Importing this registers them."""

import os
import re
from typing import Any
from urllib.error import URLError

import torchvision
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from detr.checkpoint.download import fetch
from detr.checkpoint.released import ZooModel, entry, hash_in_name, near_name
from detr.errors import InputError

TORCHVISION = "torchvision://"
ZOO = "detr://"


class TorchvisionHandler(PathHandler):  # type: ignore[misc]
    """``torchvision://resnet101``: the ImageNet weights (version 1) that the original starts from."""

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        url = torchvision_url(path)
        return fetch(url, hash_in_name(url))


class ZooHandler(PathHandler):  # type: ignore[misc]
    """``detr://detr_R_50``: the weights that the authors released."""

    def _get_supported_prefixes(self) -> list[str]:
        return [ZOO]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        model = parse_zoo_path(path)
        return fetch(model.url, model.hash_prefix)


def local_path(path: str) -> str:
    """The file or folder here that ``path`` stands for: itself, or what was downloaded for a URL or a name.

    Raises InputError for what is not there, and for what cannot be downloaded. A URL whose file name ends in the
    beginning of its SHA-256, as PyTorch's published weights have it, is held to that.
    """
    if "://" not in path:
        if not os.path.exists(path):
            raise InputError(f"there is no file or folder {path}{missing_hint(path)}")
        return path
    hashed = re.fullmatch(r"https?://\S+-([0-9a-f]{8,64})\.pth", path)
    if hashed:
        return fetch(path, hashed[1])
    try:
        return str(PathManager.get_local_path(path))
    except (URLError, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())
        raise InputError(
            f"cannot download the weights {path} ({reason}): check the network, or fetch the file by other means and "
            "name it instead"
        ) from error


def missing_hint(path: str) -> str:
    """What somebody may have meant by a path where nothing is."""
    near = near_name(path)
    if near:
        return f"; did you mean {ZOO}{near}?"
    return ": check the path (a model on the transformers hub must be downloaded as a folder first)"


def torchvision_url(path: str) -> str:
    """The address of the weights behind ``torchvision://NAME``. Raises InputError for an unknown name."""
    name = path.removeprefix(TORCHVISION)
    try:
        return str(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)
    except (ValueError, AttributeError) as error:
        raise InputError(f"torchvision has no ImageNet weights named {name!r}: try {TORCHVISION}resnet50") from error


def parse_zoo_path(path: str) -> ZooModel:
    """The released model behind ``detr://NAME``. Raises InputError for an unknown name."""
    return entry(path.removeprefix(ZOO))


PathManager.register_handler(TorchvisionHandler(), allow_override=True)
PathManager.register_handler(ZooHandler(), allow_override=True)
