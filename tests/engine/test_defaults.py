import pytest

from detr.config_checks import check_names
from detr.engine.defaults import check_output_folder, check_weights, load_config
from detr.engine.machine import fit_machine
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
    is_detr = load_config(str(path), []).MODEL.META_ARCHITECTURE == "Detr"
    assert is_detr != (path.stem == "shapes_mask_rcnn")  # which is to train beside DETR


def test_a_wrapper_yaml_loads_with_its_own_schedule(tmp_path):
    path = tmp_path / "wrapper.yaml"
    path.write_text(WRAPPER_YAML)
    cfg = load_config(str(path), [])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.MAX_EPOCHS) == (554400, 0)
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 0.01


BY_EPOCHS = (300, (200,), (), 5)


@pytest.mark.parametrize(
    ("child", "opts", "expected"),
    [
        ("", [], BY_EPOCHS),
        ("", ["SOLVER.MAX_ITER", "20"], (0, (), (), 5)),
        ("", ["SOLVER.MAX_ITER", "20", "SOLVER.MAX_EPOCHS", "250"], (250, (200,), (), 5)),
        ("", ["SOLVER.MAX_EPOCHS", "250", "SOLVER.MAX_ITER", "20"], (0, (), (), 5)),
        ("", ["SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(15,)"], (0, (), (15,), 5)),
        ("", ["SOLVER.STEPS", "(15,)"], (300, (), (15,), 5)),
        ("", ["SOLVER.DROP_EPOCHS", "()"], (300, (), (), 5)),
        ("", ["TEST.EVAL_PERIOD", "7"], (300, (200,), (), 0)),
        ("SOLVER: {MAX_ITER: 20}", [], (0, (), (), 5)),
        ("SOLVER: {MAX_ITER: 20}", ["SOLVER.MAX_EPOCHS", "400"], (400, (200,), (), 5)),
        ("SOLVER: {BASE_LR: 0.1}", [], BY_EPOCHS),
    ],
)
def test_the_schedule_said_last_holds(tmp_path, child, opts, expected):
    path = tmp_path / "child.yaml"
    path.write_text(f"_BASE_: {ROOT}/configs/COCO-Detection/detr_R_50.yaml\n{child}\n")
    cfg = load_config(str(path), opts)
    solver = cfg.SOLVER
    found = (solver.MAX_EPOCHS, tuple(solver.DROP_EPOCHS), tuple(solver.STEPS), cfg.TEST.EVAL_EPOCHS)
    assert found == expected


def test_epochs_without_a_base_leave_no_drop_of_detectron2s(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("SOLVER: {MAX_EPOCHS: 3}")
    assert load_config(str(path), []).SOLVER.STEPS == ()


@pytest.mark.parametrize("key", ["MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME"])
def test_a_name_that_is_not_registered_is_told(tiny_config, key):
    with pytest.raises(InputError, match=f"{key} is 'Unheard', which is not registered: it must be one of"):
        check_names(tiny_config({key: "Unheard"}))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.DETR.NUM_CLASES", "3"],
            "unknown config key MODEL.DETR.NUM_CLASES; did you mean MODEL.DETR.NUM_CLASSES?",
        ),
        (["MODEL.DETR.NUM_CLASSES"], "MODEL.DETR.NUM_CLASSES has no value: nothing follows"),
        (["MODEL.WEIGHTS", "SOLVER.MAX_ITER=3"], "MODEL.WEIGHTS has no value: SOLVER.MAX_ITER=3 follows"),
        (["SOLVER.MAX_ITER", "3", "--resume"], "--resume stands among the KEY VALUE pairs"),
        (["MODEL.DETR.NUM_CLASSES", "many"], "NUM_CLASSES is many, and must be a whole number, such as 4"),
        (["MODEL.DETR.NUM_CLASSES=3.0"], "NUM_CLASSES is 3.0, and must be a whole number"),
        (["SOLVER.BASE_LR=True"], "SOLVER.BASE_LR is True, and must be a number"),
        (["MODEL.DETR.DENOISING", "True"], "MODEL.DETR.DENOISING is a section of the config"),
        (["=3"], "'' stands where a config key should"),
    ],
)
def test_bad_options_are_told(opts, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        load_config(str(QUICKSTART), opts)


def test_keys_with_and_without_equals_signs():
    opts = ["SOLVER.MAX_ITER=20", "SOLVER.STEPS", "(5, 10)", "MODEL.WEIGHTS=a=b.pth", "OUTPUT_DIR", "out/x=1"]
    cfg = load_config(str(QUICKSTART), [*opts, "DATASETS.TEST=('a','b')", "INPUT.MIN_SIZE_TRAIN=[96,128]"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (20, (5, 10))
    assert (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR) == ("a=b.pth", "out/x=1")
    assert (cfg.DATASETS.TEST, cfg.INPUT.MIN_SIZE_TRAIN) == (("a", "b"), (96, 128))
    assert load_config(str(QUICKSTART), ["MODEL.WEIGHTS="]).MODEL.WEIGHTS == ""


def test_a_dict_sets_some_keys_of_a_section():
    cfg = load_config(str(QUICKSTART), ["MODEL.DETR={'DENOISING': {'COPIES': 2}, 'NHEADS': 8}"])
    keys = cfg.MODEL.DETR
    assert (keys.DENOISING.COPIES, keys.NHEADS, keys.DENOISING.ENABLED, keys.HIDDEN_DIM) == (2, 8, True, 128)


def test_a_whole_number_is_a_float_where_one_is_wanted(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("SOLVER: {BASE_LR: 1, CLIP_GRADIENTS: {CLIP_VALUE: 2}, MAX_ITER: 7}")
    cfg = load_config(str(path), ["SOLVER.GAMMA", "0", "MODEL.DETR.DROPOUT=0"])
    values = cfg.SOLVER.BASE_LR, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE, cfg.SOLVER.GAMMA, cfg.MODEL.DETR.DROPOUT
    assert values == (1, 2, 0, 0)
    assert all(type(value) is float for value in values)
    cfg.merge_from_list(["SOLVER.BASE_LR", 3])  # as scripts do that know no load_config
    assert type(cfg.SOLVER.BASE_LR) is float
    assert type(cfg.SOLVER.MAX_ITER) is int


def test_a_python_config_says_what_to_do(tmp_path):
    (tmp_path / "lazy.py").write_text("model = None")
    with pytest.raises(
        InputError, match=r"lazy\.py is a Python config, .* run Detectron2.s .* as in docs/detectron2\.md"
    ):
        load_config(str(tmp_path / "lazy.py"), [])


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
    with pytest.raises(InputError, match=r"MODEL\.WEIGHTS: there is no file or folder .*gone\.pth: check the path"):
        check_weights(str(tmp_path / "gone.pth"))
    with pytest.raises(InputError, match=r"holds no weights: of a folder"):
        check_weights(str(tmp_path))
    with pytest.raises(InputError, match="no ImageNet weights named 'resnet51'"):
        check_weights("torchvision://resnet51")
    with pytest.raises(InputError, match=r"no released model is named 'detr_R50'; did you mean detr_R_50"):
        check_weights("detr://detr_R50")
    with pytest.raises(InputError, match="--eval-only needs trained weights"):
        check_weights("", needed=True)
    check_weights("")
    check_weights("detectron2://ImageNetPretrained/torchvision/R-50.pkl")
    check_weights("detr://detr_R_50")


def test_earlier_checkpoints_are_not_written_over(tmp_path):
    check_output_folder(str(tmp_path))
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    with pytest.raises(InputError, match="go on with --resume, or name another folder"):
        check_output_folder(str(tmp_path))


def test_an_output_folder_can_be_made(tmp_path):
    check_output_folder(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []  # a command that fails later leaves nothing
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(InputError, match=rf"OUTPUT_DIR .*{name} cannot be written \(Not a directory\)"):
            check_output_folder(str(tmp_path / name))


def test_the_cpu_stands_in_for_a_missing_gpu_and_workers_for_missing_cores(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    cfg = tiny_config({"MODEL.DEVICE": "cuda", "DATALOADER.NUM_WORKERS": 4})
    fit_machine(cfg)  # for an evaluation
    assert (cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS) == ("cpu", 3)
    said = capsys.readouterr().out
    assert "CUDA, which is not available here: going on with the CPU" in said
    assert "NUM_WORKERS is 4 on 3 cores: going on with 3" in said


def test_what_is_there_is_left_alone(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    cfg = tiny_config({"MODEL.DEVICE": "cuda", "DATALOADER.NUM_WORKERS": 1})
    fit_machine(cfg)
    assert (cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS) == ("cuda", 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_processes_between_which_nccl_is_have_a_gpu_each(device, tiny_config, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.get_backend", lambda: "nccl")
    with pytest.raises(InputError, match=f"MODEL.DEVICE is {device}, but several processes .* set MODEL.DEVICE cuda"):
        fit_machine(tiny_config({"MODEL.DEVICE": device}), training=True)
    fit_machine(tiny_config({"MODEL.DEVICE": "cuda"}), training=True)


@pytest.mark.parametrize("error", [InputError("what is wrong"), FloatingPointError("what is wrong")])
def test_bad_input_ends_with_one_line(error, capsys):
    from_worker = RuntimeError(f"Caught in a worker\nTraceback ...\n{type(error).__name__}: {error}\n")
    for raised in (error, from_worker):
        with pytest.raises(SystemExit) as end, exit_with_one_line():
            raise raised
        assert end.value.code == 2
        assert capsys.readouterr().err == "error: what is wrong\n"


@pytest.mark.parametrize(("hint", "line"), [("", "interrupted"), ("use --resume", "interrupted: use --resume")])
def test_an_interrupt_is_one_line(hint, line, capsys):
    with pytest.raises(SystemExit) as end, exit_with_one_line(hint):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == f"{line}\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), exit_with_one_line():
        raise ZeroDivisionError
