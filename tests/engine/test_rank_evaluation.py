"""Evaluation on several processes is that of one: every detection, every pixel of a map, AP and PQ."""

import datetime
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from detr.data.shapes import ensure_shapes
from detr.engine.trainer import Trainer
from detr.evaluation.evaluators import build_evaluator
from tests.conftest import QUICKSTART, TINY
from tests.lively import as_opts, build_lively, load_config

PANOPTIC = QUICKSTART.with_name("shapes_panoptic.yaml")
NUMBERS = [1, 5, 7]  # of images: fewer than ranks, and such as do not divide
TIMEOUT = datetime.timedelta(minutes=10)
NAME = "few_shapes_{}"
SETTINGS = {
    **TINY,
    "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.COCO_BACKEND": "pycocotools",
}


class Maps(DatasetEvaluator):
    """The panoptic maps and their segments, by image, on the main process."""

    def reset(self):
        self.found = {}

    def process(self, inputs, outputs):
        for x, output in zip(inputs, outputs, strict=True):
            map_, segments = output["panoptic_seg"]
            self.found[x["image_id"]] = [hashlib.sha1(map_.numpy().tobytes()).hexdigest(), segments]

    def evaluate(self):
        ranks = comm.gather(self.found)
        if comm.is_main_process():
            assert sum(map(len, ranks)) == len({key for found in ranks for key in found})
            self.all = {str(key): value for found in ranks for key, value in found.items()}


def register(number: int, folder: Path) -> None:
    """The first images of ``shapes_val_panoptic``, with ground truth of their own."""
    name, full = NAME.format(number), MetadataCatalog.get("shapes_val_panoptic")
    dicts = DatasetCatalog.get("shapes_val_panoptic")[:number]
    ids = {x["image_id"] for x in dicts}
    metadata = full.as_dict()
    for key in ("json_file", "panoptic_json"):
        content = json.loads(Path(metadata[key]).read_text())
        content["images"] = [x for x in content["images"] if x["id"] in ids]
        content["annotations"] = [x for x in content["annotations"] if x["image_id"] in ids]
        metadata[key] = str(folder / f"{number}_{key}.json")
        Path(metadata[key]).write_text(json.dumps(content))
    del metadata["name"]
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(**metadata)


def evaluate(folder: Path) -> list:
    """Results, maps, and the two files of predictions, of each of the sets."""
    ensure_shapes(Path(os.environ["DETECTRON2_DATASETS"]), train_images=48, val_images=16)
    found = []
    for number in NUMBERS:
        output = folder / str(number)
        output.mkdir(parents=True)
        register(number, output)
        settings = {**SETTINGS, "OUTPUT_DIR": output, "DATASETS.TEST": (NAME.format(number),)}
        cfg = load_config(str(PANOPTIC), as_opts(settings))
        maps = Maps()
        evaluator = DatasetEvaluators([build_evaluator(cfg, NAME.format(number)), maps])
        results = Trainer.test(cfg, build_lively(PANOPTIC, settings), evaluator)
        if comm.is_main_process():
            files = ("coco_instances_results.json", "predictions.json")
            found.append([results, maps.all, *(json.loads((output / "inference" / x).read_text()) for x in files)])
    return found


def run_a_rank(rank: int, ranks: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(minutes=10),
    )
    comm.create_local_process_group(ranks)
    found = evaluate(Path(folder, str(rank)) if rank else Path(folder, "main"))
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def evaluated_by(ranks: int, folder: Path) -> list:
    folder.mkdir()
    torch.multiprocessing.spawn(run_a_rank, args=(ranks, str(folder)), nprocs=ranks)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
def test_two_ranks_evaluate_as_one_process(shapes_root, tmp_path):
    found, of_one = evaluated_by(2, tmp_path / "two"), evaluated_by(1, tmp_path / "one")
    for number, ours, theirs in zip(NUMBERS, found, of_one, strict=True):
        (results, maps, detections, panoptic), (of_one_results, of_one_maps, of_one_detections, of_one_panoptic) = (
            ours,
            theirs,
        )
        assert len(maps) == number
        assert maps == of_one_maps
        assert len(detections) > 10 * number
        assert detections == of_one_detections
        assert panoptic["annotations"] == of_one_panoptic["annotations"]
        assert results == of_one_results
        assert {"bbox", "segm", "panoptic_seg"} <= results.keys()
