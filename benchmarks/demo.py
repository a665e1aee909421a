"""The quickstart's models, whose AP and PQ show what a faster way of computing costs."""

from pathlib import Path

from benchmarks.earlier import ROOT
from detr.engine.defaults import load_config


def config_file(panoptic: bool) -> str:
    return str(ROOT / "configs" / "quickstart" / f"shapes_{'panoptic' if panoptic else 'detection'}.yaml")


def trained_weights(panoptic: bool) -> Path | None:
    """Of the last `make demo` or `make demo-panoptic` that has ended."""
    trained = []
    for weights in (ROOT / "output").glob("quickstart*/model_final.pth"):
        cfg = load_config(str(weights.with_name("config.yaml")), [])
        if panoptic == cfg.MODEL.DETR.PANOPTIC.ENABLED:
            trained.append(weights)
    return max(trained, key=lambda x: x.stat().st_mtime, default=None)
