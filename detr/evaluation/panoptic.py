"""PQ's ground truth: the areas of segments that panopticapi reads, also where the JSON lacks them."""

import copy
import json
import os

from detectron2.evaluation import COCOPanopticEvaluator
from detectron2.utils import comm

from detr.data.coco_file import read_lists
from detr.data.panoptic_mapper import has_known_area, read_segment_ids


def panoptic_evaluator(dataset_name: str, folder: str) -> COCOPanopticEvaluator:
    """Detectron2's. Where a segment has no area, it gets a JSON, in the folder, with that of its pixels in the PNG.

    Raises InputError where a file cannot be read.
    """
    evaluator = COCOPanopticEvaluator(dataset_name, folder)
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
