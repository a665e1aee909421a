"""Odd values of every config key that a training reads, up to its first step and the first image of its evaluation."""

import functools
import math
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from hypothesis import strategies as st

from detr.data.shapes import ensure_shapes
from detr.engine.defaults import check_config, load_config
from detr.engine.trainer import Trainer
from detr.errors import InputError
from tests.conftest import QUICKSTART, SHORT, TINY, as_opts
from tests.fuzz.outcome import RIGHT, Kind, check_line

BASE = {
    **TINY,
    **SHORT,
    "SOLVER.IMS_PER_BATCH": 2,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MAX_SIZE_TRAIN": 64,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 64,
}
SECTIONS = (
    "MODEL.DETR",
    "MODEL.BACKBONE",
    "MODEL.RESNETS",
    "SOLVER",
    "INPUT",
    "DATALOADER",
    "TEST",
    "DATASETS",
    "LOGGING",
)
SINGLE = ("MODEL.MASK_ON", "MODEL.DEVICE", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.META_ARCHITECTURE",
          "MODEL.WEIGHTS", "SEED", "VIS_PERIOD", "CUDNN_BENCHMARK")  # fmt: skip
VALUES: list[Any] = [0, 1, -1, 2, 3, 7, 17, 1000, 10**6, 10**9, 2**31, 2**63, 10**30, 0.0, 0.5, -0.5, 1.0, 2.5, 1e-30,
                     1e30, -1e30, math.inf, -math.inf, math.nan, True, False, "", "x", "none", "res9", "cuda:7", "é",
                     (), (0,), (-1,), (1,), (64, 64), (64, 32), (1, 2, 3), (0.5, 0.5), (math.nan,), (10**9,), ("x",),
                     (None,), [[]], [], {}, None]  # fmt: skip


@functools.cache
def defaults() -> CfgNode:
    ensure_shapes(Path(os.environ["DETECTRON2_DATASETS"]), train_images=8, val_images=4)
    return load_config(str(QUICKSTART), as_opts(BASE))


def _leaves(node: CfgNode, prefix: str) -> list[str]:
    keys = []
    for key, value in node.items():
        keys += _leaves(value, f"{prefix}.{key}") if isinstance(value, CfgNode) else [f"{prefix}.{key}"]
    return keys


@functools.cache
def keys() -> list[str]:
    found = list(SINGLE)
    for section in SECTIONS:
        node = defaults()
        for part in section.split("."):
            node = node[part]
        found += _leaves(node, section)
    return found


def default(key: str) -> Any:
    node = defaults()
    for part in key.split("."):
        node = node[part]
    return node


@st.composite
def changes(draw: Any) -> list[tuple[str, Any]]:
    """One to three keys with values, most of them of the key's type."""
    found = []
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        key = draw(st.sampled_from(keys()))
        known = type(default(key))
        fitting = [value for value in VALUES if type(value) is known or (known is float and type(value) is int)]
        any_value = draw(st.sampled_from(range(6))) == 0 or not fitting
        found.append((key, draw(st.sampled_from(VALUES if any_value else fitting))))
    return found


def run(case: dict[str, Any], folder: Path) -> str:
    opts = as_opts({**BASE, "OUTPUT_DIR": str(folder / "run")})
    config_file = str(QUICKSTART)
    if case["yaml"]:
        config_file = str(folder / "config.yaml")
        nested: dict[str, Any] = {"_BASE_": str(QUICKSTART)}
        for key, value in [*BASE.items(), *case["changes"]]:
            node = nested
            *sections, last = key.split(".")
            for part in sections:
                node = node.setdefault(part, {})
            node[last] = list(value) if isinstance(value, tuple) else value
        Path(config_file).write_text(yaml.safe_dump(nested, allow_unicode=True), encoding="utf-8")
        opts = ["OUTPUT_DIR", str(folder / "run")]
    else:
        opts += as_opts(dict(case["changes"]))
    (folder / "run").mkdir()
    names = {part for key, _ in case["changes"] for part in (key, key.rpartition(".")[2])}
    try:
        cfg = load_config(config_file, opts)
        check_config(cfg, training=True)
        cfg.freeze()
        losses = _first_step(cfg)
    except InputError as error:
        # Of keys that do not fit each other, the message may name the other one.
        return check_line(error, *names, "SOLVER.", "exported model")
    except FloatingPointError as error:  # a training that diverges ends with one line too
        return check_line(error)
    assert all(map(math.isfinite, losses)), f"losses {losses}"
    return RIGHT


def _first_step(cfg: CfgNode) -> list[float]:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    model = trainer.model
    inputs = next(iter(trainer.data_loader))
    queries = cfg.MODEL.DETR.NUM_OBJECT_QUERIES, cfg.MODEL.DETR.NUM_CLASSES + 1
    if hasattr(model, "num_queries"):
        assert (model.num_queries, model.num_classes + 1) == queries, "another model than the config's"
    losses = [float(value.detach()) for value in model(inputs).values()]
    if cfg.SOLVER.MAX_ITER:
        from detectron2.utils.events import EventStorage

        with EventStorage(0) as trainer.storage:
            trainer.iter = 0
            trainer.run_step()
    for name in cfg.DATASETS.TEST:
        with torch.no_grad():
            model.eval()(next(iter(Trainer.build_test_loader(cfg, name))))
    return losses


CONFIGS = Kind(st.fixed_dictionaries({"changes": changes(), "yaml": st.booleans()}), run)
