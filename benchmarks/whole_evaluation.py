"""`train_net.py --eval-only` on photographs, from the command to the results: this code beside that of before."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from panopticapi.utils import id2rgb
from PIL import Image

from benchmarks.contestants import MAX_SIZE, checkpoint
from benchmarks.earlier import ROOT, earlier_code
from benchmarks.loading import REAL, dataset
from benchmarks.panoptic import NAME, threshold_of
from benchmarks.photos import PHOTOS
from benchmarks.timing import Result, Sample, Settings, require, take_turns
from detr.data.masks import rasterize

IMAGES, PANOPTIC_IMAGES = 40, 16  # a turn takes less than a minute
HEIGHT, QUERIES_KEPT, BATCH = 800, 20, 4
BOUNDS = {"order": 0, "detections of one side alone": 0.002, "scores": 1e-3, "boxes in pixels": 0.5}


def boxes(settings: Settings) -> Result:
    with earlier_code() as earlier:
        return measure(settings, earlier, panoptic=False)


def panoptic(settings: Settings) -> Result:
    with earlier_code() as earlier:
        return measure(settings, earlier, panoptic=True)


def measure(settings: Settings, earlier: Path, panoptic: bool) -> Result:
    """earlier: the folder of the code of before. Results of the timed turns are compared, which saves a turn."""
    count = 2 if settings.smoke else PANOPTIC_IMAGES if panoptic else IMAGES
    height = 96 if settings.smoke else HEIGHT
    folder = "COCO-PanopticSegmentation" if panoptic else "COCO-Detection"
    opts: list[Any] = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.WEIGHTS",
        checkpoint(NAME, panoptic),
        "INPUT.MIN_SIZE_TEST",
        height,
    ]
    opts += ["INPUT.MAX_SIZE_TEST", MAX_SIZE * height // HEIGHT]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        photos = _prepare(root, count)
        if panoptic:
            score = threshold_of(_resized(photos[0], height), QUERIES_KEPT)
            opts += ["MODEL.DETR.INSTANCE_SCORE_THRESHOLD", score, "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD", score]
        command = ["train_net.py", "--config-file", f"configs/{folder}/{NAME}.yaml", "--eval-only", *map(str, opts)]
        contestants = {
            "ours": functools.partial(
                _evaluate, ROOT, root, root / "ours", settings, [*command, "TEST.IMS_PER_BATCH", str(BATCH)]
            ),
            "before": functools.partial(_evaluate, earlier, root, root / "before", settings, command),
        }
        seconds = take_turns(contestants, settings.repeats)
        agreement = _compare(root / "ours", root / "before")
        share = {who: _seconds_of_model(root / who) / seconds[who].values[-1] for who in contestants}
    note = (
        f"{count} images, ours in batches of up to {BATCH}; calls of the model take {share['ours']:.0%} of our time, "
    )
    rates = {who: Sample(tuple(count / value for value in x.values)) for who, x in seconds.items()}
    return Result(rates, unit="images/s", agreement=agreement, note=note + f"{share['before']:.0%} of that before")


def _evaluate(code: Path, data: Path, output: Path, settings: Settings, command: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(code), "DETECTRON2_DATASETS": str(data)}
    environment["OMP_NUM_THREADS"] = str(settings.threads)
    work = [sys.executable, *command, "OUTPUT_DIR", str(output)]
    done = subprocess.run(work, cwd=code, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{code}: {' '.join(command)} has failed:\n{done.stderr[-2000:]}")


@contextlib.contextmanager
def _photographs() -> Iterator[tuple[Path, Path]]:
    """A folder of images and its annotations: COCO's, a part of COCO's beside this repository, or drawn ones."""
    annotations = PHOTOS / "annotations" / "instances_val2017.json"
    if not REAL.is_dir() and annotations.is_file():
        yield PHOTOS / "val2017", annotations
    else:
        with dataset() as found:
            yield found


def _prepare(root: Path, count: int) -> list[Path]:
    """Makes a small COCO of boxes and panoptic maps, as DETECTRON2_DATASETS names it. Returns its images.

    Maps have the annotated objects that are no crowds, and one kind of stuff behind them.
    """
    coco = root / "coco"
    for name in ("annotations", "val2017", "panoptic_val2017"):
        (coco / name).mkdir(parents=True)
    with _photographs() as (folder, annotations):
        content = json.loads(annotations.read_text(encoding="utf-8"))
        images = sorted(content["images"], key=lambda x: x["id"])[:count]
        for x in images:
            (coco / "val2017" / x["file_name"]).write_bytes((folder / x["file_name"]).read_bytes())
    categories = [{key: x[key] for key in ("id", "name", "isthing")} for x in COCO_CATEGORIES]
    objects = {x["id"]: [y for y in content["annotations"] if y["image_id"] == x["id"]] for x in images}
    instances = {
        "images": images,
        "categories": [x for x in categories if x["isthing"]],
        "annotations": [y for found in objects.values() for y in found],
    }
    maps = [_draw_map(x, objects[x["id"]], coco / "panoptic_val2017") for x in images]
    for kind, written in (
        ("instances", instances),
        ("panoptic", {"images": images, "categories": categories, "annotations": maps}),
    ):
        (coco / "annotations" / f"{kind}_val2017.json").write_text(json.dumps(written), encoding="utf-8")
    return [coco / "val2017" / x["file_name"] for x in images]


def _draw_map(image: dict[str, Any], objects: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    size = image["height"], image["width"]
    ids = np.ones(size, dtype=np.int32)
    classes = {1: next(x["id"] for x in COCO_CATEGORIES if not x["isthing"])}
    for x in objects:
        if not x["iscrowd"] and x.get("segmentation"):
            classes[len(classes) + 1] = x["category_id"]
            ids[rasterize(x["segmentation"], size, image["file_name"])] = len(classes)
    name = f"{Path(image['file_name']).stem}.png"
    Image.fromarray(id2rgb(ids)).save(folder / name)
    areas = {int(key): int(area) for key, area in zip(*np.unique(ids, return_counts=True), strict=True)}
    segments = [{"id": key, "category_id": classes[key], "area": area, "iscrowd": 0} for key, area in areas.items()]
    return {"image_id": image["id"], "file_name": name, "segments_info": segments}


def _resized(path: Path, height: int) -> Image.Image:
    photo = Image.open(path).convert("RGB")
    return photo.resize((photo.width * height // photo.height, height))


def _seconds_of_model(output: Path) -> float:
    """Of calls of the model in the last evaluation, by Detectron2's log."""
    log = (output / "log.txt").read_text(encoding="utf-8")
    batches = re.findall(r"Start inference on (\d+) batches", log)[-1]
    return int(batches) * float(re.findall(r"pure compute time: .*\((\S+) s / iter", log)[-1])


def _compare(ours: Path, before: Path) -> str:
    """Every detection, and the segments of maps where there are any. Raises Disagreement."""
    found, expected = (_detections(x, "coco_instances_results.json") for x in (ours, before))
    common = [key for key in found if key in expected]
    values = [np.array([[*x[key]["bbox"], x[key]["score"]] for key in common]) for x in (found, expected)]
    apart = np.abs(values[0] - values[1]).max(0)
    alone = 1 - 2 * len(common) / (len(found) + len(expected))
    differences = {
        "order": float(common != [key for key in expected if key in found]),
        "detections of one side alone": alone,
        "scores": float(apart[4]),
        "boxes in pixels": float(apart[:4].max()),
    }
    text = require("ours", differences, BOUNDS)
    if (ours / "inference" / "predictions.json").is_file():
        maps = [json.loads((x / "inference" / "predictions.json").read_text())["annotations"] for x in (ours, before)]
        classes = [[[y["category_id"] for y in x["segments_info"]] for x in found] for found in maps]
        other = sum(a != b for a, b in zip(*classes, strict=True)) / len(maps[0])
        text += "; " + require("maps", {"maps with other segments": other}, {"maps with other segments": 0.1})
    return f"{text}; {len(common)} detections"


def _detections(output: Path, name: str) -> dict[tuple[int, int, int], dict[str, Any]]:
    """By image, class, and how often the class came before in the image."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    counts: dict[tuple[int, int], int] = {}
    for x in json.loads((output / "inference" / name).read_text(encoding="utf-8")):
        pair = (x["image_id"], x["category_id"])
        counts[pair] = counts.get(pair, 0) + 1
        key = (*pair, counts[pair])
        found[key] = x
    return found
