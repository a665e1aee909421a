"""Which warnings of other packages do not appear after ``import detr``, and which do."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

CODE = """
{imports}
import logging, warnings
from detectron2.utils.logger import setup_logger
setup_logger()
from torch.utils import cpp_extension
for name, text in (
    ("torch.utils.cpp_extension", "No CUDA runtime is found, using CUDA_HOME='/usr/local'"),
    ("torch.utils.cpp_extension", "kept: a compiler"),
    ("detectron2.data.datasets.coco",
     "\\nCategory ids in annotations are not in [1, #categories]! We'll apply a mapping for you.\\n"),
    ("detectron2.data.datasets.coco", "kept: annotations"),
    ("detectron2.evaluation.coco_evaluation", "Fast COCO eval is not built. Falling back to official COCO eval."),
    ("detectron2.config.compat", "Config 'a.yaml' has no VERSION. Assuming it to be compatible with latest v2."),
    ("detectron2.config.compat", "kept: Config 'a.yaml' has no VERSION. Assuming it to be v1."),
):
    logging.getLogger(name).warning(text)
warnings.warn("pkg_resources is deprecated as an API. See ...", UserWarning)
warnings.warn("Glyph 29483 (CJK) missing from font(s) DejaVu Sans.", UserWarning)
warnings.warn("kept: the user's own", UserWarning)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    ["import detr, detectron2.engine", "import detectron2.engine, detr"],
    ids=["before", "after"],
)
def test_what_nobody_can_act_on_is_dropped_and_all_else_stays(imports):
    ours_first = imports.startswith("import detr")
    flags = [] if ours_first else ["-W", "ignore::FutureWarning"]  # of torch.jit, before anything of ours has run
    command = [sys.executable, *flags, "-c", CODE.format(imports=imports)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = [line for line in (result.stdout + result.stderr).splitlines() if not line.startswith("  warnings.warn(")]
    assert [line for line in lines if "kept" not in line] == []
    assert sum("kept" in line for line in lines) == 4
