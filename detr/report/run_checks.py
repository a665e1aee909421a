"""Whether the results in a run's folder can be read, are of its data set, and are of its weights."""

import math
import os
from collections.abc import Mapping
from typing import Any

from detr.engine.metrics_files import Metrics
from detr.errors import InputError

MOST_SECONDS = 5.0  # by which a file may be newer than one that is written together with it


def check_detections(detections: Any, path: str, truth: Mapping[str, Any], dataset: str) -> None:
    """Raises InputError for what is no list of detections in COCO's format, or not of this data set."""
    if not isinstance(detections, list) or not all(isinstance(x, dict) for x in detections):
        raise InputError(f"{path} is no list of detections in COCO's format: evaluate again")
    categories, images = ({x["id"] for x in truth[key]} for key in ("categories", "images"))
    for i, x in enumerate(detections):
        box, score = x.get("bbox"), x.get("score")
        if not isinstance(box, list) or len(box) != 4 or not _finite(*box, score):
            raise InputError(
                f"{path}: number {i} of the detections has the bbox {box} and the score {score}: a report needs four "
                "finite numbers and one; evaluate again"
            )
        for key, known, what in (("image_id", images, "image"), ("category_id", categories, "category")):
            value = x.get(key)
            if not isinstance(value, (int, str)) or value not in known:
                raise InputError(
                    f"{path} is of another data set than {dataset}: the {what} {value!r} of number {i} of its "
                    "detections is not there; name the right one with --dataset, or evaluate again"
                )


def _finite(*values: Any) -> bool:
    return all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in values) and math.isfinite(sum(values))


def warnings_about(
    folder: str, path: str, config_file: str, config: Mapping[str, Any], metrics: Metrics
) -> tuple[str, ...]:
    """A sentence for each sign that the results are not those of the run's weights.

    path: of the results; config_file, config: of the last evaluation or training; metrics: of the training
    """
    found, written = [], os.path.getmtime(path)
    if config_file and os.path.getmtime(config_file) > written + MOST_SECONDS:
        found.append(
            f"The results are older than {os.path.basename(config_file)}: they are of an earlier evaluation, or of an "
            "earlier training in this folder. Evaluate again."
        )
    elif os.path.basename(config_file) == "config_eval.yaml":
        weights = str(config.get("MODEL", {}).get("WEIGHTS", ""))
        if os.path.isfile(weights) and os.path.getmtime(weights) > written + MOST_SECONDS:
            found.append(f"The results are older than the weights {weights}, of which they are. Evaluate again.")
    elif metrics:
        last = max(map(max, metrics.values()))
        evaluated = max((max(curve) for key, curve in metrics.items() if _is_ap(key)), default=last)
        if evaluated < last:
            found.append(
                f"The results are of iteration {evaluated}; the training in this folder went on to iteration "
                f"{last}. Evaluate its last weights."
            )
    return tuple(found)


def _is_ap(key: str) -> bool:
    """A box AP's name: bbox/AP, or name/bbox/AP of one of several data sets."""
    return key == "bbox/AP" or key.endswith("/bbox/AP")
