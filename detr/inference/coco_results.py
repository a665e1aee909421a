"""Detections in COCO's results format, written while they are found."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import pycocotools.mask
from detectron2.structures import Instances

from detr.errors import InputError


def coco_results(
    instances: Instances,
    image_id: int,
    file_name: str,
    class_names: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """One dict for each object of an image, as pycocotools' ``loadRes`` takes them, with two names added.

    instances: on the CPU, as ``Predictor`` returns them
    class_names, category_ids: of the K classes (see ``Predictor``); by default 0 to K - 1

    Each has ``image_id``, ``file_name``, ``category_id``, ``category_name`` where it is known, ``bbox`` xywh in pixels,
    ``score``, and with masks ``segmentation`` as compressed RLE.
    """
    boxes = instances.pred_boxes.tensor.tolist()
    masks = _encode(instances.pred_masks.numpy()) if instances.has("pred_masks") else None
    results = []
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        number = int(instances.pred_classes[index])
        result = {
            "image_id": image_id,
            "file_name": file_name,
            "category_id": number if category_ids is None else category_ids[number],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": float(instances.scores[index]),
        }
        if class_names is not None:
            result["category_name"] = class_names[number]
        if masks is not None:
            result["segmentation"] = masks[index]
        results.append(result)
    return results


def _encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """masks: (I, H, W) bool."""
    encoded = pycocotools.mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [{"size": [int(x) for x in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in encoded]


class ResultsFile:
    """A JSON file with one list, which is whole however its ``with`` block is left. A context manager."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises InputError where the file cannot be written."""
        self._path = Path(path)
        self._first = True
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] = open(self._path, "w", encoding="utf-8")  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise InputError(f"the results {path} cannot be written ({error.strerror})") from error
        self._file.write("[")

    def write(self, results: Sequence[dict[str, Any]]) -> None:
        """Appends what ``coco_results`` returns, a line each."""
        for result in results:
            self._file.write(("\n" if self._first else ",\n") + json.dumps(result))
            self._first = False

    def __enter__(self) -> "ResultsFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.write("\n]\n")
        self._file.close()
