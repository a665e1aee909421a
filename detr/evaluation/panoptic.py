"""PQ: its ground truth, with the areas that the JSON may lack, and predictions compressed in threads."""

import contextlib
import copy
import importlib
import io
import itertools
import json
import math
import os
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.evaluation.panoptic_evaluation import _print_panoptic_results
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from detr.data.coco_file import read_lists
from detr.data.panoptic_mapper import has_known_area, read_segment_ids
from detr.evaluation.coco import choose_backend
from detr.evaluation.encoding import EncodingEvaluator


class PanopticEvaluator(EncodingEvaluator, COCOPanopticEvaluator):
    """Detectron2's COCOPanopticEvaluator, with the same results and ``predictions.json``; hotcoco, where it is
    installed, counts in this process, and not in one for each core."""

    def __init__(self, dataset_name: str, folder: str, backend: str = "auto") -> None:
        """backend: as TEST.COCO_BACKEND. Raises InputError as ``choose_backend``."""
        super().__init__(dataset_name, folder)
        self.backend = choose_backend(backend)

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """outputs: with ``panoptic_seg``, the map (height, width) and its segments, as ``Detr`` gives it."""
        for x, output in zip(inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            self.encode_later(
                x, self._encode, x["file_name"], ids.cpu().numpy(), [dict(segment) for segment in segments]
            )

    def _encode(self, image_id: Any, path: str, ids: np.ndarray, segments: list[dict[str, Any]]) -> dict[str, Any]:
        colors = ids.astype("<u4")[..., None].view(np.uint8)[..., :3]  # an id is R + 256 G + 256^2 B
        with io.BytesIO() as file:
            # Maps are runs of one color: files are smaller than by the default, in a third of the time.
            Image.fromarray(np.ascontiguousarray(colors)).save(file, format="PNG", compress_type=zlib.Z_RLE)
            png = file.getvalue()
        return {
            "image_id": image_id,
            "file_name": f"{os.path.splitext(os.path.basename(path))[0]}.png",
            "png_string": png,
            "segments_info": [self._convert_category_id(x) for x in segments],
        }

    def evaluate(self) -> Any:
        """PQ, SQ and RQ in percent, of all classes, things and stuff; None but on the main process.

        NaN where neither the data set nor a prediction has any. Raises ValueError where an image has no prediction.
        """
        if self.backend == "pycocotools":
            return super().evaluate()
        self.collect()
        predictions = list(itertools.chain(*comm.gather(self._predictions)))
        if not comm.is_main_process():
            return None
        truth = PathManager.get_local_path(self._metadata.panoptic_json)
        images = PathManager.get_local_path(self._metadata.panoptic_root)
        with tempfile.TemporaryDirectory(prefix="panoptic_eval") as folder:
            for x in predictions:
                with open(os.path.join(folder, x["file_name"]), "wb") as png:
                    png.write(x.pop("png_string"))
            with open(truth, encoding="utf-8") as file:
                content = {**json.load(file), "annotations": predictions}
            path = os.path.join(self._output_dir, "predictions.json")
            with PathManager.open(path, "w") as file:
                file.write(json.dumps(content))
            with contextlib.redirect_stdout(io.StringIO()):
                compute = importlib.import_module("hotcoco.panoptic").pq_compute  # an optional package
                counted = compute(truth, PathManager.get_local_path(path), gt_folder=images, pred_folder=folder)
        _print_panoptic_results(counted)
        results = {
            f"{key}{suffix}": 100 * counted[group][key.lower()] if counted[group]["n"] else math.nan
            for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
            for key in ("PQ", "SQ", "RQ")
        }
        return {"panoptic_seg": results}


def panoptic_evaluator(dataset_name: str, folder: str, backend: str = "auto") -> PanopticEvaluator:
    """Where a segment has no area, the evaluator gets a JSON, in the folder, with that of its pixels in the PNG.

    Raises InputError where a file cannot be read, and as ``choose_backend``.
    """
    evaluator = PanopticEvaluator(dataset_name, folder, backend)
    if not comm.is_main_process():
        return evaluator  # the main process evaluates
    metadata = copy.copy(evaluator._metadata)
    content = read_lists(metadata.panoptic_json, optional="")
    incomplete = [x for x in content["annotations"] if not all(map(has_known_area, x["segments_info"]))]
    for x in incomplete:
        ids = read_segment_ids(os.path.join(metadata.panoptic_root, x["file_name"]))
        for segment in x["segments_info"]:
            segment["area"] = int((ids == segment["id"]).sum())
    if incomplete:
        path = os.path.join(folder, f"{dataset_name}_areas.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)
        vars(metadata)["panoptic_json"] = path  # it refuses to be given another value
        evaluator._metadata = metadata
    return evaluator
