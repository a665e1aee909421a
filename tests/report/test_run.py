"""A run's folder, as evaluators leave it, and what is wrong with folders."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from detr.errors import InputError
from detr.evaluation.evaluators import build_evaluator
from detr.report import analyze, read_run
from detr.report.run import RESULTS
from tests.evaluation.test_evaluators import PANOPTIC, evaluate, truth

ROW = {"image_id": 100001, "category_id": 4, "bbox": [1.0, 2.0, 30.0, 40.0], "score": 0.5}


@pytest.fixture
def pairs(shapes_root):
    """Inputs and outputs of a model that is a little beside, and sometimes takes a star for a triangle."""
    pairs, random = truth(), np.random.default_rng(0)
    for _, output in pairs:
        instances = output["instances"]
        noise = torch.from_numpy(random.normal(0, 1, (len(instances), 4)))
        instances.pred_boxes.tensor += noise.float()
        instances.pred_masks = instances.pred_masks.roll(1, dims=2)
        confused = torch.from_numpy(random.random(len(instances)) < 0.2) & (instances.pred_classes == 3)
        instances.pred_classes[confused] = 2
    return pairs


def _write_run(cfg, **files):
    folder = Path(cfg.OUTPUT_DIR)
    (folder / "config.yaml").write_text(cfg.dump())
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_text(content)
    return folder


def _check(report, results):
    """The report's AP is the evaluator's."""
    for task, mean in (("bbox", report.box), ("segm", report.mask)):
        if task in results:
            assert 100 * mean.ap == pytest.approx(results[task]["AP"])
            assert 100 * mean.small == pytest.approx(results[task]["APs"])
            rows = {x.name: x.box if task == "bbox" else x.mask for x in report.classes}
            assert len(rows) == 4
            for name, row in rows.items():
                assert 100 * row.ap == pytest.approx(results[task][f"AP-{name}"])


@pytest.mark.parametrize(
    "settings", [{}, {"MODEL.MASK_ON": True}, PANOPTIC], ids=["boxes", "masks", "things of a panoptic set"]
)
def test_the_files_of_our_evaluation(run_config, pairs, settings):
    cfg = run_config(settings)
    folder = _write_run(cfg)
    for _, output in [] if cfg.MODEL.MASK_ON else pairs:
        output["instances"].remove("pred_masks")
    results = evaluate(build_evaluator(cfg, cfg.DATASETS.TEST[0]), pairs)
    run = read_run(str(folder))
    assert run.dataset == cfg.DATASETS.TEST[0]
    assert run.class_names == ("disc", "square", "triangle", "star")
    assert run.category_ids == (1, 2, 4, 7)
    assert run.config["SOLVER"]["IMS_PER_BATCH"] == 4
    assert len(run.files) == 16
    assert all(Path(path).is_file() for path in run.files.values())
    assert run.warnings == ()
    report = analyze(run)
    _check(report, results)
    assert (report.mask is not None) == cfg.MODEL.MASK_ON
    assert 0.3 < report.box.ap < 0.9
    assert report.confusion[3, 2] > 0


def test_the_files_of_detectron2s_evaluation_of_its_own_model(tmp_path, pairs):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.DATASETS.TEST = str(tmp_path), ("shapes_val",)
    folder = _write_run(cfg)
    evaluator = COCOEvaluator("shapes_val", tasks=("bbox", "segm"), output_dir=str(folder / "inference"))
    results = evaluate(evaluator, pairs)
    _check(analyze(read_run(str(folder))), results)


def test_of_two_test_sets_each_has_its_own_results(run_config, pairs):
    cfg = run_config({"DATASETS.TEST": "('shapes_train', 'shapes_val')"})
    folder = _write_run(cfg)
    evaluate(build_evaluator(cfg, "shapes_val"), pairs)
    assert read_run(str(folder)).dataset == "shapes_val"
    with pytest.raises(InputError, match=r"was not evaluated on shapes_train: python train_net.py --eval-only"):
        read_run(str(folder), dataset="shapes_train")
    (folder / "inference" / "shapes_train").mkdir()
    (folder / "inference" / "shapes_train" / RESULTS).write_text("[]")
    assert read_run(str(folder)).dataset == "shapes_train"
    assert read_run(str(folder), dataset="shapes_val").dataset == "shapes_val"


@pytest.fixture
def folder(run_config, shapes_root):
    """A run that was evaluated: one detection."""
    folder = _write_run(run_config())
    (folder / "inference").mkdir()
    (folder / "inference" / RESULTS).write_text(json.dumps([ROW]))
    return folder


def test_results_in_one_folder_are_those_of_the_last_set(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["DATASETS"]["TEST"] = ["shapes_train", "shapes_val"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run(str(folder)).dataset == "shapes_val"
    path = str(folder / "inference" / RESULTS)
    with pytest.raises(InputError, match=r"may be of shapes_train or shapes_val"):
        read_run(str(folder), predictions=path)
    assert read_run(str(folder), "shapes_val", predictions=path).detections == [ROW]


def test_the_config_of_the_last_evaluation_counts(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["DATASETS"]["TEST"] = ["shapes_train"]
    config["MODEL"]["WEIGHTS"] = "model.pth"
    (folder / "config_eval.yaml").write_text(yaml.safe_dump(config))
    os.utime(folder / "config.yaml", (0, 0))
    with pytest.raises(InputError, match=r"of another data set than shapes_train: the image 100001 of number 0"):
        read_run(str(folder))


def test_a_lazy_config_names_its_test_set(folder):
    lazy = {"dataloader": {"test": {"dataset": {"names": "shapes_val", "_target_": "get_detection_dataset_dicts"}}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(lazy))
    assert read_run(str(folder)).dataset == "shapes_val"


def test_a_set_registered_elsewhere_is_named_by_its_files(folder, shapes_root):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["DATASETS"]["TEST"] = ["of_a_script"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"of_a_script is not registered here: name its COCO file with --annotations"):
        read_run(str(folder))
    files = {
        "annotations": str(shapes_root / "shapes" / "annotations" / "instances_val.json"),
        "images": str(shapes_root / "shapes" / "val"),
    }
    theirs, ours = read_run(str(folder), **files), read_run(str(folder), "shapes_val")
    assert theirs.truth == ours.truth
    assert theirs.files == ours.files
    assert (theirs.dataset, theirs.class_names) == ("instances_val", ours.class_names)
    (folder / "config.yaml").unlink()
    assert read_run(str(folder), **files).truth == ours.truth
    with pytest.raises(InputError, match=r"has none of the images of .*instances_val\.json, such as "):
        read_run(str(folder), **{**files, "images": str(folder)})


def test_a_set_of_the_config_is_registered(folder, shapes_root, registered):
    registered.append("mine_for_a_report")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["DATASETS"]["TEST"] = ["mine_for_a_report"]
    path = str(shapes_root / "shapes" / "annotations" / "instances_val.json")
    config["DATASETS"]["REGISTER"] = [["mine_for_a_report", path]]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run(str(folder)).class_names == ("disc", "square", "triangle", "star")


def _rewritten(folder, **changes):
    (folder / "inference" / RESULTS).write_text(json.dumps([{**ROW, **changes}]))


BREAKS = {
    "no folder": (lambda folder: None, {"folder": "nowhere"}, r"there is no folder nowhere"),
    "no config": (lambda folder: (folder / "config.yaml").unlink(), {}, r"has no config.yaml"),
    "no YAML": (lambda folder: (folder / "config.yaml").write_text("a: ["), {}, r"config.yaml cannot be read"),
    "a list": (lambda folder: (folder / "config.yaml").write_text("[1]"), {}, r"is no config"),
    "no set": (lambda folder: (folder / "config.yaml").write_text("{}"), {}, r"no data set in DATASETS.TEST"),
    "no results": (lambda folder: (folder / "inference" / RESULTS).unlink(), {}, r"was not evaluated on shapes_val"),
    "wrong path": (lambda folder: None, {"predictions": "x.json"}, r"there are no predictions x.json"),
    "no images": (lambda folder: None, {"annotations": "x.json"}, r"--annotations, and the folder with --images"),
    "cut off": (lambda folder: (folder / "inference" / RESULTS).write_text("[{"), {}, r"cannot be read as JSON"),
    "a dict": (lambda folder: (folder / "inference" / RESULTS).write_text("{}"), {}, r"no list of detections"),
    "image": (lambda folder: _rewritten(folder, image_id=5), {}, r"the image 5 of number 0 .* --dataset"),
    "image of no kind": (lambda folder: _rewritten(folder, image_id=[5]), {}, r"the image \[5\] of number 0"),
    "category": (lambda folder: _rewritten(folder, category_id=3), {}, r"the category 3 of number 0"),
    "not finite": (lambda folder: _rewritten(folder, score=float("nan")), {}, r"the score nan: a report needs"),
    "no box": (lambda folder: _rewritten(folder, bbox=None), {}, r"the bbox None"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_folder_that_makes_no_report_is_one_line(folder, name):
    spoil, options, message = BREAKS[name]
    assert read_run(str(folder)).detections == [ROW]
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_run(**{"folder": str(folder), **options})
    assert "\n" not in str(caught.value)


def test_the_command_that_evaluates_is_given_in_full(folder):
    (folder / "inference" / RESULTS).unlink()
    (folder / "model_final.pth").touch()
    with pytest.raises(InputError) as caught:
        read_run(str(folder))
    command = str(caught.value).partition(": ")[2]
    assert command == (
        f"python train_net.py --eval-only --config-file {folder}/config.yaml MODEL.WEIGHTS {folder}/model_final.pth "
        f"OUTPUT_DIR {folder} DATASETS.TEST '('\"'\"'shapes_val'\"'\"',)'"
    )


def test_a_set_whose_evaluator_leaves_no_results_is_named(folder, monkeypatch):
    monkeypatch.setitem(vars(MetadataCatalog.get("shapes_val")), "evaluator_type", "lvis")
    with pytest.raises(InputError, match=r"shapes_val is of type lvis"):
        read_run(str(folder))


def _warnings(folder):
    return " ".join(read_run(str(folder)).warnings)


def test_results_that_may_be_of_other_weights_are_warned_of(folder):
    results = folder / "inference" / RESULTS
    rows = [{"iteration": 19, "total_loss": 3.0}, {"iteration": 29, "bbox/AP": 12.0}]
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    assert _warnings(folder) == ""
    rows.append({"iteration": 39, "total_loss": 2.0})
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    assert re.search("of iteration 29; the training in this folder went on to iteration 39", _warnings(folder))
    weights = folder / "model_final.pth"
    weights.touch()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["MODEL"]["WEIGHTS"] = str(weights)
    (folder / "config_eval.yaml").write_text(yaml.safe_dump(config))
    now = os.path.getmtime(results)
    os.utime(folder / "config.yaml", (now, now - 2))
    os.utime(folder / "config_eval.yaml", (now, now - 1))
    os.utime(weights, (now, now - 100))
    assert _warnings(folder) == ""
    os.utime(weights, (now, now + 100))
    assert "older than the weights" in _warnings(folder)
    os.utime(folder / "config_eval.yaml", (now, now + 100))
    assert "older than config_eval.yaml" in _warnings(folder)
