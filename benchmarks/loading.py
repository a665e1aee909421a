"""Data loading for training: what one worker process does with JPEG files, images a second.

Both sides read the same files and make the same random choices with the same odds; a repetition draws anew, the same
way on both sides' generators. The original normalizes its images in the worker and hands over floats; ours hands
over bytes, and the model normalizes them, which the rows of inference and training include.
"""

import contextlib
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data.datasets import load_coco_json

from benchmarks.contestants import photograph
from benchmarks.timing import Result, Sample, Settings, race, require
from detr.data.dataset_mapper import DetrDatasetMapper
from tests.parity.oracle import load_oracle
from tests.parity.pairs import config

REAL = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "coco"  # of Detectron2's layout, where it is
AREA_BOUND = 0.15  # between the mean areas that random sizes and crops give on the two sides
IMAGES, OBJECTS = 80, 7


@contextlib.contextmanager
def dataset() -> Iterator[tuple[Path, Path]]:
    """A folder of images and its annotations: COCO's, or drawn ones of COCO's most frequent size."""
    annotations = REAL / "annotations" / "instances_val2017.json"
    if annotations.is_file():
        yield REAL / "val2017", annotations
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        rng = np.random.default_rng(0)
        for i in range(1, IMAGES + 1):
            photograph(480, 640).save(folder / f"{i}.jpg", quality=90)
            images.append({"id": i, "file_name": f"{i}.jpg", "height": 480, "width": 640})
            for _ in range(OBJECTS):
                box = [*rng.uniform(0, 300, 2).tolist(), *rng.uniform(10, 170, 2).tolist()]
                row = {"id": len(objects) + 1, "image_id": i, "category_id": 1, "bbox": box, "iscrowd": 0}
                objects.append({**row, "area": box[2] * box[3]})
        content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
        file = folder / "annotations.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        yield folder, file


def loading(settings: Settings) -> Result:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker of torch's DataLoader
    try:
        with dataset() as (folder, annotations):
            return _loading(settings, folder, annotations)
    finally:
        torch.set_num_threads(threads)


def _loading(settings: Settings, folder: Path, annotations: Path) -> Result:
    mapper = DetrDatasetMapper(config("detr_R_50"), is_train=True)
    dicts = load_coco_json(str(annotations), str(folder))
    for x in dicts:  # load_coco_json leaves COCO's ids where no data set is registered
        for obj in x["annotations"]:
            obj["category_id"] = 0
    original = load_oracle()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = original.CocoDetection(str(folder), str(annotations), original.make_coco_transforms("train"), False)
    count = 10 if settings.smoke else min(len(dicts), IMAGES)
    contestants = {
        "ours": _passes(count, lambda i: mapper(dicts[i])["image"]),
        "original": _passes(count, lambda i: theirs[i][0]),
    }
    # Sizes are random: over few images their means are far apart.
    bound = {"mean area": 1.0 if settings.smoke else AREA_BOUND}
    samples, agreement = race(contestants, settings.repeats, lambda found: _compare(found, bound))
    rates = {name: Sample(tuple(count / seconds for seconds in x.values)) for name, x in samples.items()}
    kind = "of COCO" if folder.is_relative_to(REAL) else "drawn"
    return Result(rates, unit="images/s", agreement=agreement, note=f"{count} images {kind} a turn, one thread")


def _passes(count: int, load: Callable[[int], Any]) -> Callable[[], float]:
    """Loads all images once more at each call, with new random choices. Returns their mean area in pixels."""
    calls = iter(range(10**6))

    def work() -> float:
        seed = next(calls)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return float(np.mean([load(i).shape[-2:].numel() for i in range(count)]))

    return work


def _compare(areas: dict[str, float], bound: dict[str, float]) -> str:
    apart = abs(areas["ours"] / areas["original"] - 1)
    return require("ours", {"mean area": apart}, bound)
