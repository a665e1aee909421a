"""What `import detr` does to a program."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_importing_changes_nothing_but_registries():
    code = """
import sys, json, logging
stdout, path, modules = sys.stdout, list(sys.path), set(sys.modules)
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
import detectron2.engine, detectron2.evaluation, torchvision, scipy.optimize, safetensors.torch, matplotlib
import pytest
from detectron2.solver import build_optimizer
opened.clear()
import detr
print(json.dumps({
    "stdout": sys.stdout is stdout,
    "path": sys.path == path,
    "drawing": [name for name in sys.modules if name.startswith("detr.data.shapes.")],
    "opened": [name for name in opened if not name.endswith((".py", ".pyc", ".so")) and "shapes" in name],
    "handlers": len(logging.getLogger("detr").handlers),
}))
"""
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"stdout": True, "path": True, "drawing": [], "opened": [], "handlers": 0}
