"""`--resume` of the ``Trainer`` where config and checkpoint do not fit: one line, and nothing is changed."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detr.checkpoint import DetrCheckpointer
from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.conftest import QUICKSTART, ROOT, SHORT, TINY, as_opts
from tests.engine.test_training import RETINANET


def train(cfg, trainer=Trainer):
    run = trainer(cfg)
    run.resume_or_load(resume=False)
    run.train()


def refused(cfg, message, trainer=Trainer):
    run = trainer(cfg)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    with pytest.raises(InputError, match=message) as error:
        run.resume_or_load(resume=True)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    assert not run.optimizer.state
    assert run.iter == run.start_iter == 0
    close(run)


def close(run):
    """Closes the files of a training that is not started."""
    for writer in [writer for hook in run._hooks for writer in getattr(hook, "_writers", [])]:
        writer.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MODEL.DETR.NUM_OBJECT_QUERIES": 30}, "NUM_OBJECT_QUERIES is 30 here and 20 in the checkpoint"),
        ({"SOLVER.OPTIMIZER": "SGD"}, r"SOLVER\.OPTIMIZER is SGD here and ADAMW in the checkpoint"),
        ({"MODEL.BACKBONE.FREEZE_AT": 1}, r"MODEL\.BACKBONE\.FREEZE_AT was 0"),
        ({"MODEL.DETR.NHEADS": 8}, "NHEADS is 8 here and 4 in the checkpoint"),
    ],
)
def test_a_trainer_with_another_config_is_refused(shapes_root, run_config, settings, message):
    train(run_config({"DATASETS.TEST": "()"}))
    refused(run_config({"DATASETS.TEST": "()", **settings}), message)


def test_an_optimizer_of_a_subclass_is_compared_too(shapes_root, run_config):
    class Own(Trainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            return torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.5)

    cfg = run_config({"DATASETS.TEST": "()"})
    train(cfg, Own)
    resumed = Own(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    close(resumed)
    refused(cfg, "OPTIMIZER is ADAMW here and SGD in the checkpoint")


def test_another_meta_architecture_is_compared_too(shapes_root, tmp_path):
    (tmp_path / "retinanet.yaml").write_text(RETINANET)
    (tmp_path / "run").mkdir()

    def config(**settings):
        opts = {"DATASETS.TEST": "()", "OUTPUT_DIR": tmp_path / "run", "SOLVER.MAX_ITER": 1}
        opts |= {key.replace("__", "."): value for key, value in settings.items()}
        return load_config(str(tmp_path / "retinanet.yaml"), as_opts(opts))

    train(config())
    resumed = Trainer(config())
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 1
    assert resumed.optimizer.state
    close(resumed)
    refused(config(SOLVER__OPTIMIZER="ADAMW"), "OPTIMIZER is ADAMW here and SGD in the checkpoint")
    refused(config(MODEL__RETINANET__NUM_CLASSES=7), r"head\.cls_score\.weight and 1 more tensors of another shape")


def test_a_file_of_weights_alone_is_refused(shapes_root, run_config):
    cfg = run_config({"DATASETS.TEST": "()"})
    DetrCheckpointer(Trainer.build_model(cfg), cfg.OUTPUT_DIR).save("weights")
    refused(cfg, "it holds no optimizer's state, as a file of weights alone; start anew from its weights: without")


@pytest.mark.slow
def test_the_script_ends_with_one_line(shapes_root, run_config):
    """Status 2, no traceback, no signal; the checkpoints and the config stay as they are."""
    cfg = run_config({"DATASETS.TEST": "()"})
    train(cfg)
    Path(cfg.OUTPUT_DIR, "config.yaml").write_text(cfg.dump())
    before = digests(cfg.OUTPUT_DIR)
    settings = {**TINY, **SHORT, "DATASETS.TEST": "()", "OUTPUT_DIR": cfg.OUTPUT_DIR, "SOLVER.MAX_ITER": 4}
    opts = as_opts({**settings, "MODEL.DETR.NUM_OBJECT_QUERIES": 30})
    command = [sys.executable, "train_net.py", "--config-file", str(QUICKSTART), "--num-gpus", "0", "--resume", *opts]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert result.stderr.splitlines()[-1].startswith(
        f"error: cannot resume from {cfg.OUTPUT_DIR}/model_final.pth: MODEL."
    )
    assert digests(cfg.OUTPUT_DIR) == before


def digests(folder):
    files = [*Path(folder).glob("*.pth"), Path(folder) / "last_checkpoint", Path(folder) / "config.yaml"]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
