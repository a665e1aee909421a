"""The seven models from the authors' format to Detectron2's and back, and run in both.

Three of them cover both depths, DC5 and masks; these also go to transformers' and back.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detr.checkpoint.architecture import CheckpointInfo
from detr.checkpoint.rows import CLASS_KEYS, COCO_ROWS, NEVER, PANOPTIC, THINGS, coco_rows
from detr.checkpoint.source import read
from detr.convert.conversion import Request, convert
from detr.convert.verification import ModelOutputs, compare, run
from tests.parity.oracle import lively_original, original_checkpoint

pytestmark = pytest.mark.slow

DETECTION = ["detr_R_50", "detr_R_50_DC5", "detr_R_101", "detr_R_101_DC5"]
PANOPTIC_MODELS = ["detr_R_50_panoptic", "detr_R_50_DC5_panoptic", "detr_R_101_panoptic"]
IN_TRANSFORMERS = ["detr_R_50", "detr_R_50_DC5", "detr_R_101_panoptic"]


@dataclass
class Case:
    """One model in the authors' format and in Detectron2's, on disk."""

    info: CheckpointInfo
    num_classes: int
    folder: Path
    found: ModelOutputs  # by the authors' code

    def convert(self, source: str, output: str, to: str, **options: object) -> str:
        request = Request(str(self.folder / source), str(self.folder / output), to, dc5=bool(self.info.dilation))
        return convert(Request(**{**vars(request), "overwrite": True, **options})).output

    def run(self, path: str) -> ModelOutputs:
        return of_categories(run(read(path), self.info))

    def state(self, name: str) -> dict[str, Tensor]:
        return read(str(self.folder / name)).state


def of_categories(found: ModelOutputs) -> ModelOutputs:
    """With the logits of the categories that COCO has: rows of unused ids are lost on the way, and filled."""
    rows = found.logits.shape[-1]
    logits = found.logits[..., coco_rows(COCO_ROWS[rows])] if rows in COCO_ROWS else found.logits
    return ModelOutputs(logits, found.boxes, found.masks)


@pytest.fixture(scope="module", params=DETECTION + PANOPTIC_MODELS)
def case(request, tmp_path_factory) -> Case:
    name = request.param
    panoptic = name.endswith("_panoptic")
    options = {"num_classes": 250, "masks": True} if panoptic else {}
    original, _, _ = lively_original(name.removesuffix("_panoptic"), **options)
    folder = tmp_path_factory.mktemp(name)
    torch.save(original_checkpoint(original), folder / "original.pth")
    del original
    info = CheckpointInfo(dilation="DC5" in name, heads=8)
    found = of_categories(run(read(str(folder / "original.pth")), info))
    case = Case(info, PANOPTIC if panoptic else THINGS, folder, found)
    case.convert("original.pth", "detectron2.pth", "detectron2")
    return case


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_original_to_detectron2_and_back(case):
    text, largest = compare(case.run(str(case.folder / "detectron2.pth")), case.found)
    assert largest < 1e-9, text
    case.convert("detectron2.pth", "back.pth", "original")
    start, end = case.state("original.pth"), case.state("back.pth")
    rows = coco_rows(case.num_classes)
    for key in CLASS_KEYS:
        key = next(k for k in start if k.endswith(key))
        lost = torch.ones(len(start[key]), dtype=torch.bool)
        lost[rows] = False
        assert (end[key][lost] == (NEVER if key.endswith("bias") else 0)).all()
        end[key][lost] = start[key][lost]
    assert_same(start, end)


@pytest.mark.parametrize("case", IN_TRANSFORMERS, indirect=True)
@pytest.mark.parametrize("backbone", ["resnet", "timm"])
def test_detectron2_to_transformers_and_back(case, backbone):
    if backbone == "resnet" and case.info.dilation:
        with pytest.raises(Exception, match="transformers' own ResNet has no dilation: --backbone timm"):
            case.convert("detectron2.pth", backbone, "transformers", backbone=backbone)
        return
    weights = case.convert("detectron2.pth", backbone, "transformers", backbone=backbone)
    text, largest = compare(case.run(weights), case.found)
    assert largest < 1e-5, text
    case.convert(backbone, "back.pth", "detectron2")
    assert_same(case.state("detectron2.pth"), case.state("back.pth"))
    case.convert("original.pth", backbone, "transformers", backbone=backbone)
    case.convert(backbone, "back.pth", "original")  # both count COCO's ids: no row is lost
    assert_same(case.state("original.pth"), case.state("back.pth"))
