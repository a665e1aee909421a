"""Who may import whom in detr/, so that data flows one way: config, data, modeling, evaluation.

A rule that must go needs a reason: change it here, in the same commit.
"""

import pytest

from tests.source_tree import ROOT, imports, package_of, sources, within

# They know torch, not Detectron2.
PLAIN_TORCH = {"transformer.py", "dropout.py", "position_encoding.py", "mask_head.py", "matcher.py", "denoising.py",
               "training_queries.py"}  # fmt: skip
# Beside engine/, evaluation/ and the classes with a `from_config`: builders, as Detectron2 calls them or is called.
MAY_SEE_CFG = {
    "config.py",
    "config_checks.py",
    "config_node.py",
    "config_values.py",
    "modeling/backbone.py",
    "modeling/card.py",
    "modeling/detectron2_backbones.py",
    "modeling/parts.py",
    "modeling/small_resnet.py",
    "modeling/timm_backbone.py",
    "model_zoo.py",
    "model_config.py",
    "finetuning.py",
    "pictures/sheets.py",
    "report/summary.py",
    "analysis.py",
    "profiling.py",
    "convert/verification.py",
    "export/datasets.py",
    "export/exporting.py",
    "export/metadata.py",
    "export/reducing.py",
    "inference/predictor.py",  # a model's config and preprocessing, as Detectron2's DefaultPredictor
}
PICTURES = "detr.pictures"
# module or package -> what it must not import
FORBIDDEN = {
    "detr.modeling": ("detr.engine", "detr.data", "detr.checkpoint", "detr.convert", "detr.export"),
    "detr.data": ("detr.modeling", "detr.engine", "detr.checkpoint", "detr.convert", "detr.export"),
    "detr.checkpoint": ("detr.model_zoo", "detr.engine", "detr.convert", "detr.export"),
    "detr.checkpoint.formats": ("detr.modeling", "detr.data"),
    "detr.config": ("detr.modeling", "detr.engine", "detr.data", "detr.checkpoint", "detr.convert", "detr.export"),
    "detr.convert": ("detr.engine", "detr.export", "detr.data"),
    "detr.engine": ("detr.model_zoo", "detr.convert", "detr.export"),
    "detr.evaluation": ("detr.engine", "detr.model_zoo", "detr.convert", "detr.export"),
    "detr.export": ("detr.model_zoo", "detr.convert"),
}


def violations(path: str, source: str) -> list[str]:
    """What is wrong with detr/`path`, a sentence each."""
    names = imports(source, package_of(path))
    module = f"detr.{path.removesuffix('.py').replace('/', '.')}"
    folder, _, filename = path.rpartition("/")

    def imported(*targets: str) -> list[str]:
        return sorted(name for name in names if any(within(name, target) for target in targets))

    found = []
    if folder == "modeling" and filename in PLAIN_TORCH and imported("detectron2"):
        found.append(f"{path} knows torch, not Detectron2: {imported('detectron2')}")
    sees_cfg = folder in ("engine", "evaluation") or path in MAY_SEE_CFG or "def from_config(" in source
    if imported("detectron2.config") and not sees_cfg:
        found.append(f"{path} must not see cfg: {imported('detectron2.config')}")
    for package, others in FORBIDDEN.items():
        if within(module, package) and imported(*others):
            found.append(f"{path} must not import {imported(*others)}")
    if imported(PICTURES) and not (within(module, PICTURES) or within(module, "detr.report")):
        found.append(f"{path}: pictures are drawn by scripts, not by the package")
    if imported("detectron2.model_zoo"):
        found.append(f"{path}: detectron2.model_zoo needs pkg_resources, which setuptools dropped")
    if filename in ("utils.py", "misc.py"):
        found.append(f"{path}: a file is named after what it holds")
    return found


@pytest.mark.parametrize("path", sources())
def test_every_module_keeps_the_rules(path):
    assert violations(path, sources()[path]) == []


def test_no_module_is_longer_than_300_lines():
    lengths = {path: len(text.splitlines()) for path, text in sources().items()}
    assert {path: length for path, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_scripts_do_not_import_detectron2s_model_zoo(script):
    names = imports((ROOT / script).read_text())
    assert not any(within(name, "detectron2.model_zoo") for name in names)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("modeling/matcher.py", "from detectron2.structures import Boxes"),
        ("modeling/criterion.py", "from detectron2.config import CfgNode"),
        ("modeling/criterion.py", "def f():\n    import detr.data.shapes"),
        ("modeling/criterion.py", "from ..engine import solver"),
        ("modeling/meta_arch.py", "from detr.export.networks import Network"),
        ("data/transforms.py", "from detr.modeling import matcher"),
        ("checkpoint/formats.py", "from detr.modeling.meta_arch import Detr"),
        ("checkpoint/hub.py", "from detr import model_zoo"),
        ("checkpoint/source.py", "from detr.convert import conversion"),
        ("engine/trainer.py", "import detr.pictures.sheets"),
        ("engine/defaults.py", "from detr.export.model import Description"),
        ("engine/trainer.py", "from detectron2 import model_zoo"),
        ("data/utils.py", ""),
    ],
)
def test_a_violation_is_noticed(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("modeling/matcher.py", "import torch\nfrom scipy.optimize import linear_sum_assignment"),
        ("modeling/criterion.py", "from .matcher import HungarianMatcher"),
        (
            "modeling/meta_arch.py",
            "from detectron2.config import configurable\ndef from_config(cls, cfg): ...",
        ),
        ("export/writing.py", "from detr.export.networks import Part\nfrom detr.modeling.mask_head import MaskHead"),
    ],
)
def test_what_is_allowed_is_no_violation(path, source):
    assert violations(path, source) == []
