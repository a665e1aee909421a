"""What `import detr` and the commands do to a program: what they import, and what they change."""

import json
import re
import subprocess
import sys

import pytest
import torch

from tests.checkpoint.samples import small_original
from tests.conftest import QUICKSTART, ROOT, SHORT, TINY, as_opts
from tests.source_tree import sources, within

# Each takes a tenth of a second or much more to import, and most commands need none of them.
EXTRAS = ("jinja2", "matplotlib", "nncf", "onnx", "onnxruntime", "openvino", "pandas", "panopticapi", "sahi", "sklearn",
          "supervision", "timm", "trackers", "transformers")  # fmt: skip
MODELS = ("detectron2.data", "detectron2.engine", "detectron2.modeling", "scipy", "torch._dynamo", "torchvision")

# Modules that import what others wait for, and one of each other kind: whichever is imported first, all is registered.
FIRST = [
    *(
        f"detr.{path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"
        for path, text in sources().items()
        if re.search(r"^(from|import) detectron2\.(modeling|checkpoint)", text, re.M)
        and not re.match(r"modeling/(?!__init__|folded_resnet)", path)
    ),
    *("detectron2.checkpoint", "detectron2.data", "detectron2.engine"),
    *("detr.checkpoint.model_info", "detr.config_checks", "detr.data.images", "detr.data.shapes", "detr.modeling.card"),
]

FIRST_CODE = """
import detr, importlib
importlib.import_module({module!r})
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager
assert META_ARCH_REGISTRY.get("Detr") is detr.Detr
assert META_ARCH_REGISTRY.get("ExportedDetr").__module__ == "detr.export.model"
assert {{"build_small_resnet_backbone", "build_timm_backbone"}} <= {{name for name, _ in BACKBONE_REGISTRY}}
assert {{"shapes_train", "shapes_val_panoptic"}} <= set(DatasetCatalog.list())
assert {{"detr://", "torchvision://"}} <= set(PathManager._path_handlers)
assert DetectionCheckpointer.__new__ is not object.__new__
"""
QUIET = """
import warnings
import detr
before = list(warnings.filters)
warnings.simplefilter("error")
from detectron2.modeling import build_model
warnings.filters[:] = warnings.filters[1:]
assert warnings.filters == before
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    torch.jit.script(torch.nn.Identity())
assert any("torch.jit" in str(warning.message) for warning in caught)
"""
REGISTRIES = """
import logging, sys
import detectron2.engine, detectron2.evaluation, detectron2.solver, safetensors.torch
stdout, path, opened = sys.stdout, list(sys.path), []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import detr, detr.modeling.meta_arch
assert sys.stdout is stdout
assert sys.path == path
assert not logging.getLogger("detr").handlers
opened = [name for name in opened if not name.endswith((".py", ".pyc", ".so")) and "shapes" in name]
assert not opened, opened
"""
NAMES = """
import detr
assert {"Detr", "Predictor", "add_detr_config", "model_zoo", "register_any"} <= set(dir(detr))
assert detr.checkpoint.hub.ZOO == "detr://"
for name in ("nothing", "__nothing__"):
    try:
        getattr(detr, name)
    except AttributeError as error:
        assert str(error) == f"module 'detr' has no attribute {name!r}"
    else:
        raise AssertionError(name)
"""


def command(script, *args):
    return f"import runpy, sys; sys.argv = {[script, *args]!r}; runpy.run_path({script!r}, run_name='__main__')"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, shapes_root):
    """By the name of the case: its error, and the modules that were loaded."""
    folder = tmp_path_factory.mktemp("imports")
    torch.save({"model": small_original()}, folder / "model.pth")
    metrics = folder / "metrics.json"
    metrics.write_text(json.dumps({"iteration": 1, "total_loss": 2.0}) + "\n")
    opts = as_opts({**TINY, **SHORT, "OUTPUT_DIR": folder / "run", "DATALOADER.NUM_WORKERS": 0})
    cases = [
        ("import detr", "import detr"),
        ("quickstart help", command("tools/quickstart.py", "-h")),
        ("plot", command("tools/plot_metrics.py", str(metrics), "--output", str(folder / "curves.png"))),
        ("", "import torch"),
        ("convert", command("converter.py", "--source_model", str(folder / "model.pth"),
                            "--output_model", str(folder / "converted.pth"))),
        ("", "import torchvision, detectron2.config, detectron2.structures, scipy"),
        ("names", NAMES),
        ("quiet", QUIET),
        ("registries", REGISTRIES),
        ("broken", "import sys, detr; sys.modules['detr.modeling.small_resnet'] = None; import detectron2.modeling"),
        ("train", command("train_net.py", "--config-file", str(QUICKSTART), *opts)),
        *((module, FIRST_CODE.format(module=module)) for module in FIRST),
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "-W", "ignore", "tests/import_cases.py", str(folder / "outcomes.json")],
        input=json.dumps(cases), cwd=ROOT, stdout=subprocess.DEVNULL, text=True, check=True,
    )  # fmt: skip
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "absent"),
    [
        ("import detr", (*EXTRAS, *MODELS, "torch", "detectron2", "numpy")),
        ("quickstart help", (*EXTRAS, *MODELS, "torch")),
        ("plot", (*(set(EXTRAS) - {"matplotlib"}), *MODELS, "torch")),
        ("convert", (*EXTRAS, *MODELS, "omegaconf")),
        ("train", EXTRAS),
    ],
)
def test_a_command_imports_nothing_that_it_does_not_use(outcomes, case, absent):
    error = outcomes[case]["error"]
    assert not error or error.endswith("SystemExit: 0\n")
    assert [name for name in outcomes[case]["loaded"] if any(within(name, package) for package in absent)] == []


@pytest.mark.slow
def test_the_matcher_and_the_log_are_what_a_training_imports_late(outcomes):
    """What the cases above would not see, if the training had not come so far."""
    assert {"scipy.optimize", "tensorboard"} <= set(outcomes["train"]["loaded"])


@pytest.mark.slow
@pytest.mark.parametrize("module", [*FIRST, "names", "quiet"])
def test_all_is_registered_whatever_is_imported_first(outcomes, module):
    assert outcomes[module]["error"] == ""


@pytest.mark.slow
def test_an_error_while_registering_is_that_of_the_import(outcomes):
    last = outcomes["broken"]["error"].strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError")
    assert "detr.modeling.small_resnet" in last


@pytest.mark.slow
def test_importing_changes_nothing_but_registries(outcomes):
    assert outcomes["registries"]["error"] == ""
    assert not [name for name in outcomes["registries"]["loaded"] if name.startswith("detr.data.shapes.")]
