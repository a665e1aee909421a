"""Detectron2's own scripts with configs of DETR, as `python -m detr.run` runs them."""

import itertools
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import detectron2.data.build
import detectron2.engine.defaults
import detectron2.solver.build
import pytest
import torch
from detectron2.config import defaults, get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.engine import default_argument_parser
from detectron2.structures import BitMasks
from PIL import Image

from detr import run
from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.engine.defaults import load_config
from detr.engine.foreign_scripts import build_mapper, serve_scripts
from detr.errors import InputError
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts
from tests.detectron2_tools import imported

MASK_RCNN = ROOT / "configs" / "quickstart" / "shapes_mask_rcnn.yaml"


@pytest.fixture
def served(monkeypatch):
    """What the launcher changes in its process, for one test."""
    monkeypatch.setattr(defaults, "_C", defaults._C.clone())
    monkeypatch.setattr(detectron2.data.build, "DatasetMapper", DatasetMapper)
    for module in (detectron2.solver, detectron2.solver.build, detectron2.engine.defaults):
        monkeypatch.setattr(module, "build_optimizer", module.build_optimizer)
    serve_scripts()


@pytest.fixture
def two_images(shapes_root, registered):
    """The name of a data set of the first two images of `shapes_val`."""
    images = DatasetCatalog.get("shapes_val")[:2]
    DatasetCatalog.register("two", lambda: images)
    known = MetadataCatalog.get("shapes_val")
    MetadataCatalog.get("two").set(
        evaluator_type="coco",
        thing_classes=known.thing_classes,
        thing_dataset_id_to_contiguous_id=known.thing_dataset_id_to_contiguous_id,
    )
    registered.append("two")
    return "two"


def main_of(name, monkeypatch, *words, change=lambda module: None):
    """What `python NAME.py WORDS` does; change: to its module, to end what would not."""
    module = imported(name)
    change(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, words)])
    module.main()


def config(**settings):
    return ["--config-file", str(QUICKSTART), *as_opts({**TINY, **settings})]


def test_nothing_changes_by_importing_detr():
    assert "DETR" not in get_cfg().MODEL
    assert detectron2.data.build.DatasetMapper is DatasetMapper


@pytest.mark.usefixtures("served")
def test_visualize_data_draws_annotations(two_images, tmp_path, monkeypatch):
    words = ["--source", "annotation", "--output-dir", tmp_path]
    main_of("visualize_data", monkeypatch, *words, *config(**{"DATASETS.TRAIN": "('two',)"}))
    images = DatasetCatalog.get(two_images)
    assert sorted(os.listdir(tmp_path)) == sorted(Path(x["file_name"]).name for x in images)


@pytest.mark.usefixtures("served")
def test_visualize_data_draws_what_detrs_mapper_makes(two_images, tmp_path, monkeypatch):
    batches = []

    def one_batch(module):
        def build(cfg):
            batches.extend(itertools.islice(build_detection_train_loader(cfg), 1))
            return batches

        module.build_detection_train_loader = build

    settings = {"DATASETS.TRAIN": "('two',)", "MODEL.MASK_ON": True, "SOLVER.IMS_PER_BATCH": 2}
    words = ["--source", "dataloader", "--output-dir", tmp_path]
    main_of("visualize_data", monkeypatch, *words, *config(**settings), change=one_batch)
    assert [type(x["instances"].gt_masks) for x in batches[0]] == [BitMasks, BitMasks]  # Detectron2's are polygons
    assert len(os.listdir(tmp_path)) == 2


def test_visualize_json_results_puts_truth_beside_predictions(two_images, tmp_path, monkeypatch):
    image = DatasetCatalog.get(two_images)[0]
    found = [{"image_id": image["image_id"], "category_id": 7, "bbox": [8, 8, 32, 32], "score": 0.9}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["--input", tmp_path / "found.json", "--output", tmp_path / "out", "--dataset", "two"]
    main_of("visualize_json_results", monkeypatch, *words)
    sheets = {Path(x["file_name"]).name: x for x in DatasetCatalog.get(two_images)}
    assert set(os.listdir(tmp_path / "out")) == set(sheets)
    with Image.open(tmp_path / "out" / Path(image["file_name"]).name) as sheet:
        assert sheet.size == (2 * image["width"], image["height"])


@pytest.fixture
def log(caplog):
    """Detectron2's log, which its scripts do not pass on."""
    logger = logging.getLogger("detectron2")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="detectron2")
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.usefixtures("served")
def test_analyze_model_counts_parameters_and_flops(two_images, log, monkeypatch):
    words = ["--tasks", "parameter", "flop", "--num-inputs", 1]
    main_of("analyze_model", monkeypatch, *words, *config(**{"DATASETS.TEST": "('two',)"}))
    assert "| backbone.res4 " in log.text
    assert "| transformer.decoder.layers.1 " in log.text
    assert float(log.text.partition("Total GFlops: ")[2].partition("±")[0]) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_benchmark_trains_and_evaluates(two_images, log, tmp_path, monkeypatch):
    sets = {"DATASETS.TEST": "('shapes_val',)", "OUTPUT_DIR": tmp_path, "SOLVER.IMS_PER_BATCH": 1}
    optimizers = []

    def shorten(module):
        class Short(module.SimpleTrainer):
            def train(self, start_iter, max_iter):
                optimizers.append(self.optimizer)
                super().train(start_iter, start_iter + 3)

        module.SimpleTrainer = Short

    main_of("benchmark", monkeypatch, "--task", "train", *config(**sets), change=shorten)
    assert [type(x) for x in optimizers] == [torch.optim.AdamW]
    main_of("benchmark", monkeypatch, "--task", "eval", *config(**sets))
    assert "300 iters in" in log.text


ITERATIONS = {"SOLVER.MAX_ITER": 3, "SOLVER.CHECKPOINT_PERIOD": 10, "TEST.EVAL_PERIOD": 10, "SOLVER.IMS_PER_BATCH": 2}


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("name", ["plain_train_net", "train_net"])
def test_detectron2s_trainings_train_detr(name, shapes_root, tmp_path, monkeypatch):
    module, writers = imported(name), []
    if name == "plain_train_net":  # it leaves its writers open
        build = module.default_writers
        monkeypatch.setattr(module, "default_writers", lambda *args: writers.extend(build(*args)) or writers)
    words = config(**ITERATIONS, **{"MODEL.MASK_ON": True, "OUTPUT_DIR": tmp_path})
    module.main(default_argument_parser().parse_args(words))
    for writer in writers:
        writer.close()
    (results,) = tmp_path.rglob("coco_instances_results.json")
    assert "segmentation" in json.loads(results.read_text())[0]
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    optimizer = checkpoint["optimizer"] if name == "plain_train_net" else checkpoint["trainer"]["_trainer"]["optimizer"]
    assert {int(x["step"]) for x in optimizer["state"].values()} == {3}
    assert all("exp_avg" in x for x in optimizer["state"].values())  # AdamW's


@pytest.mark.usefixtures("served")
def test_a_schedule_in_epochs_is_reported(shapes_root, tmp_path):
    words = config(**{"OUTPUT_DIR": tmp_path})
    with pytest.raises(
        InputError, match=r"MAX_ITER is not known, since the schedule is in epochs, SOLVER.MAX_EPOCHS 6"
    ):
        imported("plain_train_net").main(default_argument_parser().parse_args(words))


@pytest.mark.usefixtures("served")
def test_the_config_of_another_model_gets_what_detectron2_gives_it():
    cfg = load_config(str(MASK_RCNN), [])
    optimizer = detectron2.solver.build_optimizer(cfg, torch.nn.Linear(2, 1))
    assert isinstance(optimizer, torch.optim.SGD)
    assert type(build_mapper(cfg)) is DatasetMapper


def test_a_panoptic_set_gets_its_mapper(tiny_config):
    cfg = tiny_config({"DATASETS.TRAIN": "('shapes_train_panoptic',)", "MODEL.DETR.NUM_CLASSES": 7})
    assert type(build_mapper(cfg)) is DetrPanopticMapper


SCRIPT = """
import sys
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

def work(rank, folder):
    cfg = get_cfg()
    with open(f"{folder}/rank{rank}", "w") as file:
        file.write(f"{cfg.MODEL.DETR.NUM_CLASSES} {'mine' in DatasetCatalog} {sys.argv[1:]}")

if __name__ == "__main__":
    work("-", sys.argv[1])
    torch.multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=1)
"""


@pytest.mark.slow
def test_the_launcher_runs_a_script_and_the_ranks_that_it_spawns(shapes_root, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    data = shapes_root / "shapes" / "annotations" / "instances_val.json"
    (tmp_path / "data.yaml").write_text(f"DATASETS:\n  REGISTER: [['mine', '{data}']]\nVERSION: 2\n")
    command = ["--data", "data.yaml", "script.py", str(tmp_path), "--data", "x"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-m", "detr.run", *command], cwd=tmp_path, env=environment, check=True, timeout=300)
    expected = f"80 True {[str(tmp_path), '--data', 'x']}"
    assert [(tmp_path / f"rank{rank}").read_text() for rank in "-0"] == [expected, expected]


def test_a_missing_script_is_an_input_error():
    with pytest.raises(InputError, match=r"there is no script tools/nothing\.py"):
        run.load_script("tools/nothing.py")


@pytest.mark.parametrize("words", [[], ["--dta", "x", "script.py"]])
def test_a_wrong_command_is_reported_in_one_line(words, capsys):
    with pytest.raises(SystemExit):
        run.prepare(words)
    assert capsys.readouterr().err.count("\n") == 1
