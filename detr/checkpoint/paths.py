"""Names that stand for weights on the network, for Detectron2's path manager. Importing this registers them."""

from typing import Any

import torchvision
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from detr.errors import InputError

TORCHVISION = "torchvision://"


class TorchvisionHandler(PathHandler):  # type: ignore[misc]
    """``torchvision://resnet101``: the ImageNet weights (version 1) that the original starts from."""

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return str(PathManager.get_local_path(torchvision_url(path), force=force))


def torchvision_url(path: str) -> str:
    """The address of the weights behind ``torchvision://NAME``. Raises InputError for an unknown name."""
    name = path.removeprefix(TORCHVISION)
    try:
        return str(torchvision.models.get_model_weights(name).IMAGENET1K_V1.url)
    except (ValueError, AttributeError) as error:
        raise InputError(f"torchvision has no ImageNet weights named {name!r}: try {TORCHVISION}resnet50") from error


PathManager.register_handler(TorchvisionHandler(), allow_override=True)
