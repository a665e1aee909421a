"""Two trainings with --deterministic have the same losses, in processes of their own and with workers."""

import json
import subprocess
import sys

import pytest
import torch
from detectron2.engine import default_argument_parser

from detr.engine.defaults import setup
from tests.conftest import QUICKSTART, ROOT, SHORT, as_opts
from tests.engine.lives import SETTINGS

RUN = {**SETTINGS, **SHORT, "SOLVER.MAX_ITER": 3, "SOLVER.PATIENCE": 0, "DATASETS.TEST": "()", "SEED": -1}
RUN |= {"DATALOADER.NUM_WORKERS": 2}


@pytest.mark.slow
def test_two_runs_are_equal(shapes_root, tmp_path):
    metrics = []
    for name in "ab":
        opts = as_opts({**RUN, "OUTPUT_DIR": tmp_path / name})
        command = [sys.executable, "train_net.py", "--deterministic", "--config-file", str(QUICKSTART), *opts]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        *_, last = map(json.loads, (tmp_path / name / "metrics.json").read_text().splitlines())
        metrics.append({key: value for key, value in last.items() if "time" not in key})
    assert metrics[0]["total_loss"] > 0
    assert metrics[0] == metrics[1]
    weights = [torch.load(tmp_path / name / "model_final.pth")["model"] for name in "ab"]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(("seed", "used"), [(-1, 0), (5, 5)])
def test_what_the_option_sets(shapes_root, tmp_path, monkeypatch, seed, used):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    args = default_argument_parser().parse_args(
        ["--config-file", str(QUICKSTART), *as_opts({"OUTPUT_DIR": tmp_path / "run", "SEED": seed})]
    )
    args.deterministic = True
    before = torch.backends.cudnn.deterministic
    try:
        cfg = setup(args)
        assert used == cfg.SEED
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = before
