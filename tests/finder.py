"""A model that finds what is drawn, without training: bright blobs on a dark ground."""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances

from detr.checkpoint import DetrCheckpointer
from detr.engine.defaults import load_config
from detr.modeling.meta_arch import Detr
from tests.conftest import QUICKSTART, TINY, as_opts

SMALLEST = 6  # pixels of the model's input: what is smaller is overlooked


@META_ARCH_REGISTRY.register()
class BlobFinder(Detr):
    """Red blobs are of class 0, blue ones of class 1; scores are 0.9."""

    def inference(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"instances": _find(x)} for x in batched_inputs]


def _find(x: dict[str, Any]) -> Instances:
    image = x["image"].numpy()
    blobs, _ = scipy.ndimage.label(image.max(0) > 128)
    boxes, classes = [], []
    for index, (rows, columns) in enumerate(scipy.ndimage.find_objects(blobs), start=1):
        if min(rows.stop - rows.start, columns.stop - columns.start) >= SMALLEST:
            boxes.append([columns.start, rows.start, columns.stop, rows.stop])
            red, _, blue = image[:, blobs == index].mean(1)
            classes.append(int(blue > red))
    scale = np.array([x["width"] / image.shape[2], x["height"] / image.shape[1]] * 2)
    return Instances(
        (x["height"], x["width"]),
        pred_boxes=Boxes(torch.from_numpy(np.array(boxes).reshape(-1, 4) * scale).float()),
        scores=torch.full((len(boxes),), 0.9),
        pred_classes=torch.tensor(classes, dtype=torch.int64),
    )


def save_finder(folder: Path) -> Path:
    """A checkpoint of a ``BlobFinder`` in ``folder``, with its config beside it."""
    cfg = load_config(str(QUICKSTART), as_opts({**TINY, "MODEL.META_ARCHITECTURE": "BlobFinder"}))
    folder.mkdir(parents=True, exist_ok=True)
    DetrCheckpointer(BlobFinder(cfg), str(folder)).save("model_best")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_best.pth"
