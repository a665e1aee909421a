"""The quickstart's models, whose AP and PQ show what a faster way of computing costs."""

from pathlib import Path

from benchmarks.earlier import ROOT
from detr.engine.defaults import load_config


def config_file(panoptic: bool) -> str:
    return str(ROOT / "configs" / "quickstart" / f"shapes_{'panoptic' if panoptic else 'detection'}.yaml")


def trained_weights(panoptic: bool) -> Path | None:
    """Of the last `make demo` or `make demo-panoptic` that has ended, of those as long as its config says."""
    own, trained = load_config(config_file(panoptic), []), []
    for weights in (ROOT / "output").glob("quickstart*/model_final.pth"):
        cfg = load_config(str(weights.with_name("config.yaml")), [])
        if cfg.MODEL.DETR == own.MODEL.DETR and cfg.SOLVER.MAX_EPOCHS == own.SOLVER.MAX_EPOCHS:
            trained.append(weights)
    return max(trained, key=lambda x: x.stat().st_mtime, default=None)
