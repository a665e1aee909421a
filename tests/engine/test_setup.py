import pytest

from detr.engine.setup import check_output_folder, check_weights, load_config, use_available_device
from detr.errors import InputError, exit_with_one_line
from tests.conftest import QUICKSTART, ROOT

# As it stands in pipelines of the authors' old wrapper.
WRAPPER_YAML = """
MODEL:
  META_ARCHITECTURE: "Detr"
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  MASK_ON: False
  RESNETS:
    DEPTH: 50
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  DETR:
    GIOU_WEIGHT: 2.0
    L1_WEIGHT: 5.0
    NUM_OBJECT_QUERIES: 100
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST: ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 64
  BASE_LR: 0.0001
  STEPS: (369600,)
  MAX_ITER: 554400
  WARMUP_FACTOR: 1.0
  WARMUP_ITERS: 10
  WEIGHT_DECAY: 0.0001
  OPTIMIZER: "ADAMW"
  BACKBONE_MULTIPLIER: 0.1
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: "full_model"
    CLIP_VALUE: 0.01
    NORM_TYPE: 2.0
INPUT:
  MIN_SIZE_TRAIN: (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
  CROP:
    ENABLED: True
    TYPE: "absolute_range"
    SIZE: (384, 600)
  FORMAT: "RGB"
TEST:
  EVAL_PERIOD: 4000
DATALOADER:
  FILTER_EMPTY_ANNOTATIONS: False
  NUM_WORKERS: 4
VERSION: 2
"""


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_loads(path):
    assert load_config(str(path), []).MODEL.META_ARCHITECTURE == "Detr"


def test_a_wrapper_yaml_loads_with_its_own_schedule(tmp_path):
    path = tmp_path / "wrapper.yaml"
    path.write_text(WRAPPER_YAML)
    cfg = load_config(str(path), [])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_EPOCHS) == (554400, 0)
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 0.01


@pytest.mark.parametrize(
    ("child", "opts", "expected"),
    [
        ("", [], (300, (200,))),
        ("", ["SOLVER.MAX_ITER", "20"], (0, ())),
        ("", ["SOLVER.MAX_ITER", "20", "SOLVER.MAX_EPOCHS", "250"], (250, (200,))),
        ("SOLVER: {MAX_ITER: 20}", [], (0, ())),
        ("SOLVER: {MAX_ITER: 20}", ["SOLVER.MAX_EPOCHS", "400"], (400, (200,))),
        ("SOLVER: {BASE_LR: 0.1}", [], (300, (200,))),
    ],
)
def test_the_schedule_said_last_holds(tmp_path, child, opts, expected):
    path = tmp_path / "child.yaml"
    path.write_text(f"_BASE_: {ROOT}/configs/COCO-Detection/detr_R_50.yaml\n{child}\n")
    solver = load_config(str(path), opts).SOLVER
    assert (solver.MAX_EPOCHS, tuple(solver.DROP_EPOCHS)) == expected


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.DETR.NUM_CLASES", "3"], "the unknown config key MODEL.DETR.NUM_CLASES; did you mean MODEL.DETR.NUM_CLASSES?"),
        (["MODEL.DETR.NUM_CLASSES"], "must be KEY VALUE pairs"),
        (["MODEL.DETR.NUM_CLASSES", "many"], "the command line has a key or value that the config cannot take"),
    ],
)  # fmt: skip
def test_bad_options_are_told(opts, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        load_config(str(QUICKSTART), opts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("MODEL: {DETR: {QUERIES: 3}}", r"bad\.yaml has the unknown config key MODEL\.DETR\.QUERIES"),
        ("MODEL: [", r"bad\.yaml has a key or value that the config cannot take: while parsing"),
        ("_BASE_: gone.yaml", r"gone\.yaml"),
        ("just text", r"bad\.yaml has a key or value that the config cannot take"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_config(str(path), [])


def test_a_missing_config_is_named():
    with pytest.raises(InputError, match=r"the config file nowhere\.yaml does not exist"):
        load_config("nowhere.yaml", [])


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=r"the weights file .*gone\.pth does not exist: check MODEL.WEIGHTS"):
        check_weights(str(tmp_path / "gone.pth"))
    check_weights("")
    check_weights("detectron2://ImageNetPretrained/torchvision/R-50.pkl")


def test_earlier_checkpoints_are_not_written_over(tmp_path):
    check_output_folder(str(tmp_path))
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(InputError, match="go on with --resume, or name another folder"):
        check_output_folder(str(tmp_path))


def test_the_cpu_stands_in_for_a_missing_gpu(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cfg = tiny_config({"MODEL.DEVICE": "cuda"})
    use_available_device(cfg)
    assert cfg.MODEL.DEVICE == "cpu"
    assert "CUDA, which is not available here: going on with the CPU" in capsys.readouterr().out


@pytest.mark.parametrize("error", [InputError("what is wrong"), FloatingPointError("what is wrong")])
def test_bad_input_ends_with_one_line(error, capsys):
    from_worker = RuntimeError(f"Caught in a worker\nTraceback ...\n{type(error).__name__}: {error}\n")
    for raised in (error, from_worker):
        with pytest.raises(SystemExit) as end, exit_with_one_line():
            raise raised
        assert end.value.code == 2
        assert capsys.readouterr().err == "error: what is wrong\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_with_one_line():
        raise ZeroDivisionError
