"""The walls between the rooms of detr/: who may import whom.

A wall that must go needs a reason: change the rule here, in the same commit.
"""

import pytest

from tests.source_tree import ROOT, imports, package_of, sources, within

PLAIN_TORCH = {
    *("attention.py", "boxes.py", "dropout.py", "transformer.py"),
    *("position_encoding.py", "mask_head.py", "matcher.py"),
}
LEAVES = ("detr.visualization", "detr.export")
# Beside config.py, engine/ and the classes with a `from_config`: builders, as Detectron2 calls them or is called.
CFG_ROOMS = {
    "modeling/backbone.py",
    "modeling/building.py",
    "modeling/small_resnet.py",
    "model_zoo.py",
    "export/__init__.py",
}
# room -> rooms that it must not know
CLOSED_DOORS = {
    "detr.modeling": ("detr.engine", "detr.data", "detr.checkpoint"),
    "detr.data": ("detr.modeling", "detr.engine", "detr.checkpoint"),
    "detr.checkpoint": ("detr.model_zoo", "detr.engine"),
    "detr.engine": ("detr.model_zoo",),
    "detr.checkpoint.formats": ("detr.modeling", "detr.engine", "detr.data"),
}


def broken_walls(path: str, source: str) -> list[str]:
    """What is wrong with detr/`path`, a sentence each."""
    names = imports(source, package_of(path))
    module = f"detr.{path.removesuffix('.py').replace('/', '.')}"
    folder, _, filename = path.rpartition("/")

    def imported(*targets: str) -> list[str]:
        return sorted(name for name in names if any(within(name, target) for target in targets))

    found = []
    if folder == "modeling" and filename in PLAIN_TORCH and imported("detectron2"):
        found.append(f"{path} knows torch, not Detectron2: {imported('detectron2')}")
    sees_cfg = path == "config.py" or folder == "engine" or path in CFG_ROOMS or "def from_config(" in source
    if imported("detectron2.config") and not sees_cfg:
        found.append(f"{path} must not see cfg: {imported('detectron2.config')}")
    for room, doors in CLOSED_DOORS.items():
        if within(module, room) and imported(*doors):
            found.append(f"{path} must not know {imported(*doors)}")
    if imported(*LEAVES) and not any(within(module, leaf) for leaf in LEAVES):
        found.append(f"{path} imports a leaf: {imported(*LEAVES)}")
    if imported("detectron2.model_zoo"):
        found.append(f"{path}: detectron2.model_zoo needs pkg_resources, which setuptools dropped")
    if filename in ("utils.py", "misc.py"):
        found.append(f"{path}: a file is named after what it holds")
    return found


@pytest.mark.parametrize("path", sources())
def test_walls_stand(path):
    assert broken_walls(path, sources()[path]) == []


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("*.py")))
def test_scripts_do_not_import_the_model_zoo(script):
    names = imports((ROOT / script).read_text())
    assert not any(within(name, "detectron2.model_zoo") for name in names)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("modeling/matcher.py", "from detectron2.structures import Boxes"),
        ("modeling/criterion.py", "from detectron2.config import CfgNode"),
        ("modeling/criterion.py", "def f():\n    import detr.data.shapes"),
        ("modeling/criterion.py", "from ..engine import solver"),
        ("data/transforms.py", "from detr.modeling import matcher"),
        ("checkpoint/formats.py", "from detr.modeling.meta_arch import Detr"),
        ("checkpoint/paths.py", "from detr import model_zoo"),
        ("engine/trainer.py", "from detr import visualization"),
        ("modeling/exported.py", "from detr.export.networks import Network"),
        ("engine/trainer.py", "from detectron2 import model_zoo"),
        ("data/utils.py", ""),
    ],
)
def test_a_breach_is_noticed(path, source):
    assert len(broken_walls(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("modeling/matcher.py", "import torch\nfrom scipy.optimize import linear_sum_assignment"),
        ("modeling/criterion.py", "from .matcher import HungarianMatcher"),
        (
            "modeling/meta_arch.py",
            "from detectron2.config import configurable\ndef from_config(cls, cfg): ...",
        ),
        ("export/writing.py", "import detr.visualization\nfrom detr.export.networks import Part"),
    ],
)
def test_an_open_door_is_not_a_breach(path, source):
    assert broken_walls(path, source) == []
