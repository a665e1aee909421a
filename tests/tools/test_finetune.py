"""tools/finetune.py: from a folder of images to a model with its names, threshold and pictures."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from detr.checkpoint import DetrCheckpointer, read_card
from detr.data.loading import load_dataset
from detr.engine.defaults import load_config
from detr.errors import InputError
from detr.finetuning import CONFIG, TRAIN, VAL
from detr.modeling.meta_arch import Detr
from detr.report import read_run
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts

TINY_PHOTOS = ROOT.parent / "shared" / "datasets" / "tiny" / "coco"


def _script():
    spec = importlib.util.spec_from_file_location("finetune", ROOT / "tools" / "finetune.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


finetune = _script()


@pytest.fixture(autouse=True)
def _forget_data_sets():
    yield
    for name in (TRAIN, VAL):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture(scope="module")
def weights(shapes_root, tmp_path_factory) -> str:
    """A checkpoint of a tiny DETR of shapes, which was never trained."""
    folder = tmp_path_factory.mktemp("weights")
    cfg = load_config(str(QUICKSTART), as_opts(TINY))
    load_dataset("shapes_train")  # by which its classes have names
    torch.manual_seed(0)
    DetrCheckpointer(Detr(cfg), str(folder)).save("tiny")
    return str(folder / "tiny.pth")


def _run(output: Path, *args: str) -> None:
    finetune.main([*args, "--output", str(output), "DATALOADER.NUM_WORKERS=0"])


def test_a_folder_becomes_a_model_with_its_pictures(shapes_root, weights, tmp_path, capsys):
    output = tmp_path / "out"
    _run(output, "--data", str(shapes_root / "shapes"), "--weights", weights, "--epochs", "2")
    text = capsys.readouterr().out
    assert "class_embed" not in text  # all classes are shapes': nothing is re-initialized
    assert "batch 4: the largest power of 2" in text  # 48 images: 8 steps of 4, and not of 8
    assert f"--model {output / 'model_best.pth'}" in text
    assert f"tools/report.py {output}\n" in text
    run = read_run(str(output))
    assert (run.dataset, run.warnings) == (VAL, ())
    for name in ("training_images.png", "predictions.png", "training.png"):
        with Image.open(output / name) as picture:
            assert min(picture.size) > 300
    with open(output / "metrics.json") as file:
        evaluated = [row["iteration"] for row in map(json.loads, file) if "bbox/AP" in row]
    assert evaluated == [11, 24]  # 48 / 4 steps an epoch; Detectron2 counts the last row from 1
    card = read_card(str(output / "model_best.pth"))
    assert card.class_names == ("disc", "square", "triangle", "star")
    assert TINY["MODEL.DETR.HIDDEN_DIM"] == load_config(str(output / CONFIG), []).MODEL.DETR.HIDDEN_DIM


def test_the_threshold_travels_with_the_best_weights(weights, tmp_path):
    path = str(tmp_path / "model.pth")
    content = torch.load(weights, weights_only=False)
    torch.save(content, path)
    finetune.set_score_threshold(path, 0.35)
    assert read_card(path).score_threshold == 0.35
    assert read_card(path).class_names == read_card(weights).class_names
    assert torch.load(path, weights_only=False)["model"].keys() == content["model"].keys()


def test_without_validation_images_some_are_split_off(shapes_root, weights, tmp_path, capsys):
    output, annotations = tmp_path / "out", shapes_root / "shapes" / "annotations" / "instances_train.json"
    opts = ["SOLVER.MAX_ITER=1", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.BASE_LR=3e-4"]
    _run(output, "--train-json", str(annotations), "--train-images", str(shapes_root / "shapes" / "train"),
         "--weights", weights, *opts)  # fmt: skip
    assert "are split off, by the seed 0" in capsys.readouterr().out
    parts = [json.loads((output / "data" / f"{part}.json").read_text()) for part in ("train", "val")]
    names = [{image["file_name"] for image in part["images"]} for part in parts]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 48
    assert len(names[1]) == 10  # a fifth
    cfg = load_config(str(output / CONFIG), [])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (2, 3e-4, 1)  # the user's
    assert cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupCosineLR"  # the plan's


def test_resuming_goes_on_with_the_same_data_and_plan_wherever_the_folder_is(shapes_root, weights, tmp_path, capsys):
    output = tmp_path / "out"
    opts = ["SOLVER.MAX_ITER", "2", "SOLVER.WARMUP_ITERS", "0"]
    _run(output, "--data", str(shapes_root / "shapes"), "--weights", weights, *opts)
    before = (output / CONFIG).read_text()
    _forget()
    with pytest.raises(InputError, match="go on with --resume"):
        _run(output, "--data", str(shapes_root / "shapes"), "--weights", weights)
    assert (output / CONFIG).read_text() == before
    moved = output.rename(tmp_path / "moved")
    _run(moved, "--resume", "SOLVER.MAX_ITER=4")
    assert not output.exists()
    with open(moved / "metrics.json") as file:
        evaluated = [row["iteration"] for row in map(json.loads, file) if "bbox/AP" in row]
    assert evaluated == [2, 4]


def _forget() -> None:
    for name in (TRAIN, VAL):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_shared_classes_keep_their_rows(shapes_root, weights, tmp_path):
    content = json.loads((shapes_root / "shapes" / "annotations" / "instances_train.json").read_text())
    content["categories"] = [{"id": 2, "name": "square"}, {"id": 7, "name": "sun"}]
    content["annotations"] = [x for x in content["annotations"] if x["category_id"] in (2, 7)]
    (tmp_path / "two.json").write_text(json.dumps(content))
    output = tmp_path / "out"
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "1e-20"]
    _run(output, "--train-json", str(tmp_path / "two.json"), "--train-images", str(shapes_root / "shapes" / "train"),
         "--weights", weights, *opts)  # fmt: skip
    old, new = (torch.load(path, weights_only=False)["model"] for path in (weights, output / "model_final.pth"))
    bias = "class_embed.bias"
    assert new[bias][0] == old[bias][1]
    assert new[bias][1] != old[bias][3]
    assert new[bias][2] == old[bias][4]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name your data set"),
        (["--data", "a", "--train-json", "b"], "one of the two"),
        (["--data", "SHAPES", "--epochs", "0"], "--epochs is 0"),
        (["--data", "SHAPES", "--weights", "WEIGHTS", "SOLVER.IMS_PER_BATCH=0"], "SOLVER.IMS_PER_BATCH is 0"),
        (["--data", "SHAPES", "--weights", "WEIGHTS", "INPUT.MIN_SIZE_TRAIN=(-1,)"], "INPUT.MIN_SIZE_TRAIN is"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--train-json", "nowhere.json"], "--train-json nowhere.json is no file"),
        (["--train-json", "JSON", "--train-images", "nowhere"], "--train-images nowhere is no folder"),
        (["--data", "SHAPES", "--weights", "missing.pth"], "missing.pth"),
        (["--data", "SHAPES", "--weights", "detr://detr_R_5"], "detr_R_50"),
        (["--data", "SHAPES", "--weights", "WEIGHTS", "SOLVER.BASE_LRR", "1"], "SOLVER.BASE_LR"),
        (["--resume"], "finetune.yaml"),
        (["--resume", "--data", "SHAPES"], "leave out --data"),
        (["--train-json", "JSON", "--weights", "missing.pth"], "missing.pth"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(args, message, shapes_root, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shapes = shapes_root / "shapes"
    known = {"SHAPES": shapes, "JSON": shapes / "annotations" / "instances_train.json", "WEIGHTS": weights}
    with pytest.raises(InputError, match=message) as error:
        _run(Path("out"), *(str(known.get(arg, arg)) for arg in args))
    assert "\n" not in str(error.value)
    assert not Path("out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not TINY_PHOTOS.is_dir(), reason=f"no real photos in {TINY_PHOTOS}")
def test_real_photos(weights, tmp_path):
    output = tmp_path / "out"
    _run(output, "--data", str(TINY_PHOTOS), "--weights", weights, "--epochs", "1")
    assert len(read_card(str(output / "model_best.pth")).class_names) == 80
    with Image.open(output / "predictions.png") as picture:
        assert picture.size[0] > 1000
