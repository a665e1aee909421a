"""Class names, thresholds and preprocessing travel with exported models, and `detect.py` needs nothing else."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import onnx
import openvino
import pytest
import torch
import yaml

from detr.checkpoint import DetrCheckpointer
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.engine.defaults import load_config
from detr.export import load
from detr.export.metadata import KEYS, as_texts
from tests.conftest import QUICKSTART, TRAINING_QUERIES, as_opts
from tests.export.conftest import PANOPTIC, SETTINGS, run, save_lively
from tests.lively import assert_same, build_lively

NAMES = ("disc", "square", "triangle", "star")
# A program that runs another one without these packages.
ISOLATED = """
import runpy, sys
for name in ("torch", "torchvision", "detectron2", "detr", "fvcore"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def in_graph(folder, format):
    """The metadata in the graph's own file."""
    if format == "onnx":
        texts = onnx.load(folder / "network.onnx", load_external_data=False).metadata_props
        texts = {x.key: x.value for x in texts}
    elif format == "openvino":
        graph = openvino.Core().read_model(folder / "network.xml")
        texts = {key: graph.get_rt_info(["detr", key]).value for key in KEYS}
    elif format == "torchscript":
        texts = dict.fromkeys(KEYS, "")
        torch.jit.load(str(folder / "network.pt"), _extra_files=texts)
    else:
        texts = dict.fromkeys(KEYS, "")
        torch.export.load(str(folder / "network.pt2"), extra_files=texts)
    return {key: json.loads(texts[key]) for key in KEYS}


def test_every_graph_says_what_it_is(exported):
    description = json.loads((exported / "export.json").read_text())
    found = in_graph(exported, description["format"])
    assert found == {
        "class_names": [*NAMES, "sky", "water", "grass"],
        "is_thing": [True] * 4 + [False] * 3,
        "score_threshold": None,
        "preprocessing": {
            "channels": "RGB",
            "min_size": 128,
            "max_size": 128,
            "mean": pytest.approx([0.485, 0.456, 0.406]),
            "std": pytest.approx([0.229, 0.224, 0.225]),
            "multiple": 1,
            "square_size": 0,
        },
    }
    assert {key: description[key] for key in KEYS} == found
    assert (exported / "detect.py").exists() == (description["format"] in ("onnx", "openvino"))


def test_the_weights_know_best_what_their_classes_are(tmp_path):
    """Not the config, whose data set may be another one."""
    model = build_lively(QUICKSTART, SETTINGS)
    model.card = replace(model.card, class_names=("star", "é", "t", "disc"), score_threshold=0.25)
    DetrCheckpointer(model, str(tmp_path)).save("named")
    opts = [*as_opts(SETTINGS), "INPUT.MIN_SIZE_TEST", 112, "MODEL.WEIGHTS", tmp_path / "named.pth"]
    run(QUICKSTART, "torchscript", tmp_path / "exported", opts)
    again = load(str(tmp_path / "exported"), "cpu")
    assert (again.card.class_names, again.card.score_threshold) == (model.card.class_names, 0.25)
    assert yaml.safe_load(again.card.config)["INPUT"]["MIN_SIZE_TEST"] == 112
    assert assert_same(again, model, [(96, 128)]) == 0  # with the rows where they were


def test_a_folder_of_an_earlier_version_has_the_names_of_its_data_set(scripted, tmp_path):
    description = json.loads((scripted / "export.json").read_text())
    for key in ("class_names", "score_threshold", "preprocessing"):
        description.pop(key)
    old = tmp_path / "old"
    old.mkdir()
    for name in ("network.pt", "config.yaml"):
        (old / name).write_bytes((scripted / name).read_bytes())
    (old / "export.json").write_text(json.dumps(description))
    assert load(str(old), "cpu").card.class_names == NAMES


def test_the_config_has_no_key_of_a_training(tmp_path):
    settings = {
        **SETTINGS,
        **TRAINING_QUERIES,
        "SOLVER.BASE_LR": 0.5,
        "MODEL.DETR.ACTIVATION_CHECKPOINT": "('transformer',)",
    }
    opts, _ = save_lively(QUICKSTART, tmp_path, settings)
    run(QUICKSTART, "torchscript", tmp_path / "exported", opts)
    config = yaml.safe_load((tmp_path / "exported" / "config.yaml").read_text())
    left_out = {"DENOISING", "QUERY_GROUPS", "ANCHOR_QUERIES", "ACTIVATION_CHECKPOINT", "FREEZE_DETR", "FROZEN_WEIGHTS"}
    assert not left_out & config["MODEL"]["DETR"].keys()
    assert "SOLVER" not in config
    assert config["MODEL"]["DETR"]["NUM_OBJECT_QUERIES"] == 20
    assert config["DATASETS"]["TEST"] == ["shapes_val"]  # which train_net.py --eval-only evaluates


def detected(folder, photo):
    """What the script prints: [(class, score, box)]."""
    command = [sys.executable, "-c", ISOLATED, str(folder / "detect.py"), str(photo)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=folder.parent, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    return [(name, float(score), [float(x) for x in box.split()]) for name, score, box in lines]


def expected(model, opts, photo, threshold):
    """The same of the model in torch, with the mapper that evaluates."""
    width, height = 197, 311
    with torch.no_grad():
        x = DetrDatasetMapper(load_config(str(PANOPTIC), as_opts(opts)), is_train=False)({"file_name": str(photo)})
        (output,) = model([{**x, "height": height, "width": width}])
    found = output["instances"]
    order = found.scores.argsort(descending=True)
    rows = zip(*(x[order].tolist() for x in (found.pred_classes, found.scores, found.pred_boxes.tensor)), strict=True)
    return [(model.card.class_names[label], score, box) for label, score, box in rows if score >= threshold]


def assert_detected(found, wanted):
    assert [x[0] for x in found] == [x[0] for x in wanted]
    assert len(found) > 2
    for (_, score, box), (_, their_score, their_box) in zip(found, wanted, strict=True):
        assert score == pytest.approx(their_score, abs=2e-3)
        assert box == pytest.approx(their_box, abs=0.3)


@pytest.fixture
def scripted_graph(exported):
    """A folder with ``detect.py``."""
    if not (exported / "detect.py").exists():
        pytest.skip("this format has no script")
    return exported


def test_the_script_detects_what_the_model_does(scripted_graph, panoptic, photo):
    """Things alone, as instances are."""
    assert_detected(detected(scripted_graph, photo), expected(panoptic[1], SETTINGS, photo, 0.5))


@pytest.mark.parametrize(
    ("settings", "multiple"),
    [
        ({"INPUT.MIN_SIZE_TEST": 120, "INPUT.MAX_SIZE_TEST": 1000}, 1),  # the shorter side counts
        ({"INPUT.MIN_SIZE_TEST": 120, "INPUT.MAX_SIZE_TEST": 151, "INPUT.FORMAT": "BGR"}, 1),  # the longer one
        ({"INPUT.MIN_SIZE_TEST": 0}, 1),  # no resizing
        ({"INPUT.MIN_SIZE_TEST": 100, "INPUT.MAX_SIZE_TEST": 1000}, 32),  # padded
    ],
    ids=["shorter", "longer, BGR", "kept", "padded"],
)
def test_the_script_prepares_photos_as_the_metadata_say(settings, multiple, scripted_graph, photo, tmp_path):
    folder = shutil.copytree(scripted_graph, tmp_path / "changed")
    format = json.loads((folder / "export.json").read_text())["format"]
    values = in_graph(folder, format)
    values["preprocessing"]["multiple"] = multiple
    names = {"INPUT.MIN_SIZE_TEST": "min_size", "INPUT.MAX_SIZE_TEST": "max_size", "INPUT.FORMAT": "channels"}
    values["preprocessing"] |= {names[key]: value for key, value in settings.items()}
    values["score_threshold"] = 0.2
    model = load(str(scripted_graph), "cpu")
    if format == "onnx":
        graph = onnx.load(folder / "network.onnx")
        onnx.helper.set_model_props(graph, as_texts(values))
        onnx.save(graph, folder / "network.onnx")
    else:
        graph = openvino.Core().read_model(folder / "network.xml")
        for key, text in as_texts(values).items():
            graph.set_rt_info(text, ["detr", key])
        openvino.save_model(graph, tmp_path / "network.xml", compress_to_fp16=False)
        for name in ("network.xml", "network.bin"):
            shutil.move(tmp_path / name, folder / name)
    model.size_divisibility = multiple
    assert_detected(detected(folder, photo), expected(model, {**SETTINGS, **settings}, photo, 0.2))
