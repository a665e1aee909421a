"""``torchvision://`` and ``detr://`` for Detectron2's path manager."""

from typing import Any

from iopath.common.file_io import PathHandler

TORCHVISION = "torchvision://"
ZOO = "detr://"


class TorchvisionHandler(PathHandler):  # type: ignore[misc]
    """``torchvision://resnet101``: the ImageNet weights (version 1) that the original starts from."""

    def _get_supported_prefixes(self) -> list[str]:
        return [TORCHVISION]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        from detr.checkpoint.hub import fetch, hash_in_name, torchvision_url

        url = torchvision_url(path)
        return fetch(url, hash_in_name(url))


class ZooHandler(PathHandler):  # type: ignore[misc]
    """``detr://detr_R_50``: the weights that the authors released."""

    def _get_supported_prefixes(self) -> list[str]:
        return [ZOO]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        from detr.checkpoint.hub import fetch, parse_zoo_path

        model = parse_zoo_path(path)
        return fetch(model.url, model.hash_prefix)
