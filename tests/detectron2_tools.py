"""Detectron2's own scripts, as they come: in its checkout, or where `make env` puts those of the package."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest


def script(name: str) -> Path:
    """The path of tools/NAME.py. Skips the test where Detectron2 was installed without its scripts."""
    checkout = os.environ.get("DETECTRON2_CHECKOUT", "")
    folder = Path(checkout) / "tools" if checkout else Path(sys.prefix) / "detectron2-tools"
    if not folder.is_dir():
        pytest.skip(f"Detectron2's scripts are not in {folder}, where `make env` puts them")
    return folder / f"{name}.py"


def imported(name: str) -> ModuleType:
    """The script as a module, unchanged: what it does when it is run is its ``main``."""
    spec = importlib.util.spec_from_file_location(f"detectron2_tools_{name}", script(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
