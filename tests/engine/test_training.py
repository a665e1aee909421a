"""train_net.py from end to end, on a tiny model and 48 images."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import detectron2.utils.logger
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import default_argument_parser
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_net
from detr.errors import InputError
from detr.evaluation.evaluators import build_evaluator
from detr.report import read_run
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts

TRAINING = {**TINY, "SOLVER.IMS_PER_BATCH": 4, "SOLVER.BASE_LR": 0.001, "TEST.EVAL_PERIOD": 0}

RETINANET = """
MODEL:
  META_ARCHITECTURE: "RetinaNet"
  DEVICE: "cpu"
  WEIGHTS: ""
  BACKBONE: {NAME: "build_retinanet_resnet_fpn_backbone", FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: ["res3", "res4", "res5"], NORM: "BN"}
  FPN: {IN_FEATURES: ["res3", "res4", "res5"]}
  ANCHOR_GENERATOR: {SIZES: [[16], [32], [64], [128], [256]]}
  RETINANET: {NUM_CLASSES: 4, IOU_THRESHOLDS: [0.4, 0.5], IOU_LABELS: [0, -1, 1]}
DATASETS:
  TRAIN: ("shapes_train",)
  TEST: ("shapes_val",)
DATALOADER: {NUM_WORKERS: 0}
INPUT:
  MIN_SIZE_TRAIN: (128,)
  MIN_SIZE_TEST: 128
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 2
  BASE_LR: 0.001
VERSION: 2
"""


def train(output, settings, *flags, config=QUICKSTART):
    opts = as_opts({**settings, "OUTPUT_DIR": output})
    return train_net.main(default_argument_parser().parse_args(["--config-file", str(config), *flags, *opts]))


def iterations(output):
    """The rows of metrics.json that training wrote."""
    rows = [json.loads(line) for line in (Path(output) / "metrics.json").read_text().splitlines()]
    return [row for row in rows if "total_loss" in row]


@pytest.fixture(scope="module")
def trained(shapes_root, tmp_path_factory):
    """The folder of a training of 20 iterations, and its results."""
    output = tmp_path_factory.mktemp("training") / "first"
    results = train(output, {**TRAINING, "SOLVER.MAX_ITER": 20, "SOLVER.CHECKPOINT_PERIOD": 10})
    assert 0 <= results["bbox"]["AP"] <= 100
    return output


def test_a_training_leaves_weights_metrics_and_detections(trained):
    assert {"model_0000009.pth", "model_final.pth", "last_checkpoint", "config.yaml"} <= set(os.listdir(trained))
    (row,) = iterations(trained)
    losses = [key for key in row if key.startswith("loss_")]
    assert len(losses) == 6
    # Medians of a window each, so that the sum is near the total and not on it
    assert row["total_loss"] == pytest.approx(sum(row[key] for key in losses), rel=0.1)
    assert 0 <= row["class_error"] <= 100
    assert 0 <= row["cardinality_error"] <= 20
    detections = json.loads((trained / "inference" / "coco_instances_results.json").read_text())
    assert len(detections) == 16 * 20  # every query of every image
    assert {x["category_id"] for x in detections} <= {1, 2, 4, 7}  # the data set's own ids


def test_evaluation_alone_gives_the_same_detections(trained, tmp_path):
    train(tmp_path, {**TRAINING, "MODEL.WEIGHTS": trained / "model_final.pth"}, "--eval-only")
    name = Path("inference") / "coco_instances_results.json"
    first, second = (json.loads((folder / name).read_text()) for folder in (trained, tmp_path))
    assert first == second


def test_evaluation_leaves_the_config_of_the_training(trained):
    before = (trained / "config.yaml").read_text()
    train(trained, {**TRAINING, "MODEL.WEIGHTS": trained / "model_final.pth", "SOLVER.BASE_LR": 0.7}, "--eval-only")
    assert (trained / "config.yaml").read_text() == before


def test_resuming_goes_on_where_the_checkpoint_ends(trained, tmp_path):
    (tmp_path / "run").mkdir()
    weights = trained / "model_0000009.pth"
    os.link(weights, tmp_path / "run" / weights.name)
    (tmp_path / "run" / "last_checkpoint").write_text(weights.name)
    settings = {**TRAINING, "SOLVER.MAX_ITER": 20, "SOLVER.CHECKPOINT_PERIOD": 10}
    train(tmp_path / "run", settings, "--resume")
    checkpoint = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 19
    states = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    steps = {int(state["step"]) for state in states.values()}
    assert steps == {20}  # 10 before and 10 after: the optimizer's state came along


def test_a_second_training_does_not_write_over_the_first(trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="go on with --resume"):
        train(trained, {**TRAINING, "SOLVER.MAX_ITER": 20})
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}


def test_epochs_become_iterations_of_the_data_set(shapes_root, tmp_path):
    """48 images in batches of 16: 3 iterations an epoch."""
    train(tmp_path, {**TRAINING, "SOLVER.IMS_PER_BATCH": 16, "SOLVER.MAX_EPOCHS": 2})
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 5


def test_other_meta_architectures_train_too(shapes_root, tmp_path):
    config = tmp_path / "retinanet.yaml"
    config.write_text(RETINANET)
    train(tmp_path / "out", {}, config=config)
    assert (tmp_path / "out" / "model_final.pth").exists()


def test_a_training_that_diverges_stops_and_keeps_its_checkpoints(shapes_root, tmp_path):
    settings = {**TRAINING, "SOLVER.MAX_ITER": 50, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.WARMUP_ITERS": 0,
                "SOLVER.BASE_LR": 1e20}  # fmt: skip
    with pytest.raises(FloatingPointError, match=r"Lower SOLVER\.BASE_LR") as error:
        train(tmp_path, settings)
    assert "\n" not in str(error.value)
    first = torch.load(tmp_path / "model_0000000.pth", weights_only=True)
    assert first["iteration"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"DATASETS.TRAIN": "()"}, "DATASETS.TRAIN is empty"),
        ({"MODEL.BACKBONE.NAME": "vgg"}, "MODEL.BACKBONE.NAME is 'vgg', which is not registered"),
        ({"MODEL.DETR.NUM_CLASSES": 5}, "NUM_CLASSES is 5, but the data set shapes_val has 4 classes"),
        (
            {"DATASETS.TRAIN": "('shapes_trian',)"},
            "'shapes_trian' is not registered; did you mean shapes_train",
        ),
        ({"DATASETS.TEST": "('coco_2017_val',)"}, "coco_2017_val is registered, but its json_file"),
        ({"SOLVER.IMS_PER_BATCH": 0}, r"IMS_PER_BATCH is 0: it must be a whole number, from 1"),
        ({"MODEL.WEIGHTS": "gone.pth"}, "MODEL.WEIGHTS: there is no file or folder gone.pth"),
        ({"MODEL.DETR.HIDDEN_DIM": 30}, "HIDDEN_DIM 30 is not divisible"),
    ],
)
def test_bad_input_is_told_before_the_training(shapes_root, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path / "out", {**TRAINING, **settings})
    assert not list(tmp_path.rglob("*.pth"))


def with_bad_label(x, folder):
    return {**x, "annotations": [{**x["annotations"][0], "category_id": 4}]}


def with_cut_image(x, folder):
    path = folder / "cut.jpg"
    path.write_bytes(Path(x["file_name"]).read_bytes()[:900])
    return {**x, "file_name": str(path)}


def with_wrong_size(x, folder):
    return {**x, "height": 127}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (with_bad_label, r"\.jpg has an object of category 4, outside \[0, 4\)"),
        (with_cut_image, r"cannot read the image .*cut\.jpg"),
        (with_wrong_size, r"\.jpg is 128 x 128 pixels .* says 128 x 127"),
    ],
)
def test_one_bad_entry_is_told_before_the_training(shapes_root, tmp_path, spoil, message):
    dicts = DatasetCatalog.get("shapes_train")
    where = next(index for index, x in enumerate(dicts) if len(x["annotations"]))
    dicts[where] = spoil(dicts[where], tmp_path)
    DatasetCatalog.register("spoiled", lambda: dicts)
    MetadataCatalog.get("spoiled").thing_classes = MetadataCatalog.get("shapes_train").thing_classes
    try:
        with pytest.raises(InputError, match=message):
            train(tmp_path / "out", {**TRAINING, "DATASETS.TRAIN": "('spoiled',)"})
    finally:
        DatasetCatalog.remove("spoiled")
        MetadataCatalog.remove("spoiled")
    assert not list(tmp_path.rglob("*.pth"))


def test_boxes_of_things_and_stuff_are_trained_and_things_evaluated(shapes_root, tmp_path):
    """The first stage of panoptic training."""
    detectron2.utils.logger._LOG_COUNTER.clear()  # a histogram that another test printed is not printed again
    settings = {**TRAINING, "DATASETS.TRAIN": "('shapes_train_panoptic',)", "DATASETS.TEST": "('shapes_val_panoptic',)",
                "MODEL.DETR.NUM_CLASSES": 7, "SOLVER.MAX_ITER": 2}  # fmt: skip
    results = train(tmp_path, settings)
    assert results.keys() == {"bbox"}
    assert {"AP-disc", "AP-star"} <= results["bbox"].keys()
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"All results, in percent:\n\| +\| +shapes_val_panoptic \|\n.*\n\| box AP +\| +[\d.]+ \|", log)
    histogram = log[log.index("Distribution of instances among all 7 categories") :]
    assert re.search(r"grass +\| [1-9]", histogram)  # stuff counts


def test_panoptic_files_are_checked_before_the_training(shapes_root, tmp_path):
    dicts = DatasetCatalog.get("shapes_train_panoptic")
    dicts[5]["pan_seg_file_name"] = str(tmp_path / "gone.png")
    DatasetCatalog.register("spoiled_panoptic", lambda: dicts)
    other = MetadataCatalog.get("shapes_train_panoptic").as_dict()
    MetadataCatalog.get("spoiled_panoptic").set(**{**other, "name": "spoiled_panoptic"})
    settings = {**TRAINING, "DATASETS.TRAIN": "('spoiled_panoptic',)", "DATASETS.TEST": "()",
                "MODEL.DETR.NUM_CLASSES": 7}  # fmt: skip
    try:
        with pytest.raises(InputError, match=r"the panoptic PNG .*gone\.png does not exist"):
            train(tmp_path / "out", settings)
    finally:
        DatasetCatalog.remove("spoiled_panoptic")
        MetadataCatalog.remove("spoiled_panoptic")


@pytest.mark.parametrize("key", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_masks_that_are_missing_are_told_before_the_training(shapes_root, tmp_path, key):
    dicts = DatasetCatalog.get("shapes_val")
    spoiled = next(x for x in dicts if x["annotations"])
    del spoiled["annotations"][-1]["segmentation"]
    DatasetCatalog.register("without_masks", lambda: dicts)
    name = os.path.basename(spoiled["file_name"])
    try:
        with pytest.raises(InputError, match=rf"{name} has an object without a segmentation, .*MODEL\.MASK_ON False"):
            train(tmp_path / "out", {**TRAINING, "MODEL.MASK_ON": True, key: "('without_masks',)"})
    finally:
        DatasetCatalog.remove("without_masks")


def test_a_missing_panopticapi_is_told_before_the_training(shapes_root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "panopticapi", None)  # as Python marks a module that cannot be imported
    settings = {**TRAINING, "DATASETS.TEST": "('shapes_val_panoptic',)", "MODEL.DETR.NUM_CLASSES": 7,
                "MODEL.MASK_ON": True, "MODEL.DETR.PANOPTIC.ENABLED": True,
                "TEST.COCO_BACKEND": "pycocotools"}  # fmt: skip
    with pytest.raises(InputError, match=r"pip install --no-deps panopticapi-lite==0\.2\.0"):
        train(tmp_path / "out", settings)


def test_metrics_reach_tensorboard(trained):
    events = EventAccumulator(str(trained)).Reload()
    assert {"class_error", "cardinality_error", "total_loss", "bbox/AP"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_the_command_line_ends_with_one_line(shapes_root, tmp_path):
    """The cause last, status 2, no traceback."""
    command = [sys.executable, "train_net.py", "--config-file", str(QUICKSTART), "--num-gpus", "0"]
    opts = as_opts({**TRAINING, "OUTPUT_DIR": tmp_path / "out", "MODEL.DETR.NUM_CLASSES": 5})
    result = subprocess.run([*command, *opts], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: MODEL.DETR.NUM_CLASSES is 5, but")


def test_weights_that_overflow_stop_a_training_without_objects_too(shapes_root, tmp_path, trained):
    """No object, no matching cost: the loss itself must tell."""
    checkpoint = torch.load(trained / "model_final.pth", weights_only=True)
    checkpoint["model"]["class_embed.weight"].fill_(3e38)  # finite themselves, as a checkpoint must be
    torch.save({"model": checkpoint["model"]}, tmp_path / "huge.pth")
    flat = {"bbox": [1, 1, 0, 5], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}  # the mapper drops it
    *rest, last = DatasetCatalog.get("shapes_train")
    empty = [*({**x, "annotations": [flat]} for x in rest), last]  # none in the first batch
    DatasetCatalog.register("empty_images", lambda: empty)
    try:
        with pytest.raises(FloatingPointError, match=r"diverged at iteration 0 .*Lower SOLVER\.BASE_LR") as error:
            train(tmp_path / "out", {**TRAINING, "DATASETS.TRAIN": "('empty_images',)", "SOLVER.MAX_ITER": 2,
                                     "MODEL.WEIGHTS": tmp_path / "huge.pth"})  # fmt: skip
    finally:
        DatasetCatalog.remove("empty_images")
    assert "\n" not in str(error.value)


def test_weights_of_another_kind_are_told(shapes_root, tmp_path):
    torch.save({"model": {"detr.detr.query_embed": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"hold nothing for this model: their first keys are detr\.detr\.query_embed"):
        train(tmp_path / "out", {**TRAINING, "MODEL.WEIGHTS": tmp_path / "other.pth"}, "--eval-only")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--panoptic"]], ids=["boxes", "panoptic"])
def test_the_quickstart_leaves_its_pictures(flags, shapes_root, tmp_path):
    opts = as_opts({**TRAINING, "SOLVER.MAX_ITER": 4, "TEST.EVAL_PERIOD": 2})
    command = [sys.executable, "tools/quickstart.py", *flags, "--output", str(tmp_path / "demo"), *opts]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all((name in result.stdout) == (bool(flags) or name == "box AP") for name in ("box AP", "mask AP", "PQ"))
    assert len(result.stdout.splitlines()) < 45  # two evaluations; the rest is in files
    assert [line for line in result.stderr.splitlines() if not line.startswith("warning: ")] == []
    for name in ("predictions.png", "training.png"):
        with Image.open(tmp_path / "demo" / name) as picture:
            assert min(picture.size) > 300
    assert result.stdout.endswith(f"tools/report.py {tmp_path / 'demo'}\n")
    assert read_run(str(tmp_path / "demo")).has_masks == bool(flags)


def test_data_sets_have_their_evaluator(tiny_config, shapes_root):
    assert isinstance(build_evaluator(tiny_config(), "shapes_val"), COCOEvaluator)
    MetadataCatalog.get("of_no_known_type").evaluator_type = "unheard"
    try:
        with pytest.raises(InputError, match="no evaluator for the data set of_no_known_type of type 'unheard'"):
            build_evaluator(tiny_config(), "of_no_known_type")
    finally:
        MetadataCatalog.remove("of_no_known_type")
