"""The models that the authors released: where they lie, and what was published for them."""

import difflib
import os
import re
from dataclasses import dataclass

from detr.errors import InputError


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
    """The released model that somebody may mean who writes ``name``."""

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9]", "", text.lower().rpartition("/")[2].replace("resnet", "r"))

    plain_names = {plain(known): known for known in RELEASED}
    near = difflib.get_close_matches(plain(name), plain_names, n=1, cutoff=0.7)
    return plain_names[near[0]] if near else None


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
