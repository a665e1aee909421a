"""The lists of setup.py, the environment script, and what `import detr` says where Detectron2 is missing."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.source_tree import ROOT, imports, package_of, sources

SETUP_ENV = ROOT / "tools" / "setup_env.sh"
# import name -> distribution, where they differ
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "cv2": "opencv-python-headless"}
# These say in one line what to install where it is missing. cv2 and tqdm are there with Detectron2.
USES_EXTRAS = {
    "convert/verification.py": ("TRANSFORMERS",),
    "pictures/drawing.py": ("DETECTRON2",),
    "engine/progress.py": ("DETECTRON2",),
    "engine/terminal.py": ("DETECTRON2",),
    "inference/tiles.py": ("TILES",),
    "modeling/timm_models.py": ("TIMM",),
    "report/page.py": ("REPORT",),
    "inference/video.py": ("VIDEO", "DETECTRON2"),
}

BLOCK = """
import sys
sys.modules[{blocked!r}] = None  # as if it were not installed
import detr
detr.Detr
"""


@pytest.fixture(scope="module")
def setup_lists():
    spec = importlib.util.spec_from_file_location("setup_lists", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements(lines):
    found = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    assert len(found) == len(lines)
    return found


def import_detr_without(blocked):
    command = [sys.executable, "-W", "ignore", "-c", BLOCK.format(blocked=blocked)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_a_missing_detectron2_is_reported_with_the_remedy():
    result = import_detr_without("detectron2")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: detr needs Detectron2")
    assert "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2" in last
    assert "make env" in last
    assert "During handling" not in result.stderr  # one error, not a chain of them


def test_a_missing_package_of_detectron2_is_named():
    result = import_detr_without("fvcore")
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ModuleNotFoundError")
    assert "fvcore" in last


def test_a_folder_that_is_taken_for_the_package_is_named():
    script = (
        "import sys, types; sys.modules['detr'] = package = types.ModuleType('detr'); "
        f"package.__path__ = [{str(ROOT / 'detr')!r}]; import detr.engine"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert f"ImportError: the folder {ROOT / 'detr'} is taken for the package detr" in result.stderr


def test_every_third_party_import_is_declared(setup_lists):
    always = requirements(setup_lists.INSTALL_REQUIRES)
    for path, source in sources().items():
        extras = [getattr(setup_lists, name) for name in USES_EXTRAS.get(path, ())]
        declared = always.keys() | {name for extra in extras for name in requirements(extra)}
        tops = {name.split(".")[0] for name in imports(source, package_of(path))}
        for top in tops - {"detr", "detectron2"} - sys.stdlib_module_names:
            name = canonicalize_name(DISTRIBUTIONS.get(top, top))
            assert name in declared, f"detr/{path} imports {top}, which setup.py does not list"


def test_the_oracle_is_never_imported():
    for path, source in sources().items():
        tops = {name.split(".")[0] for name in imports(source, package_of(path))}
        assert not tops & {"models", "util", "datasets"}, path


def test_the_ranges_admit_what_make_env_installs(setup_lists):
    pins = dict(re.findall(r"\b(torch|torchvision)==([\d.]+)", SETUP_ENV.read_text()))
    assert set(pins) == {"torch", "torchvision"}
    declared = requirements(setup_lists.INSTALL_REQUIRES)
    for name, version in pins.items():
        assert declared[name].specifier.contains(version)


def test_every_requirement_has_a_lower_bound(setup_lists):
    lists = (setup_lists.INSTALL_REQUIRES, setup_lists.DETECTRON2, setup_lists.DEV)
    for name, requirement in requirements([line for lines in lists for line in lines]).items():
        assert any(part.operator == ">=" for part in requirement.specifier), name


def test_the_version_is_that_of_the_package(setup_lists):
    import detr

    assert setup_lists.read_version() == detr.__version__


@pytest.fixture
def checkout(tmp_path):
    """A checkout with the files that the environment script reads, and no environment."""
    (tmp_path / "tools").mkdir()
    shutil.copy(SETUP_ENV, tmp_path / "tools")
    shutil.copy(ROOT / "setup.py", tmp_path)
    return tmp_path


def setup_env(checkout, command):
    script = ["bash", str(checkout / "tools" / "setup_env.sh"), command]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    return subprocess.run(script, capture_output=True, text=True, timeout=60, env=environment)


def make_ready(checkout):
    """A .venv that the script takes for complete, from the digests that the script itself computes."""
    bin_folder = checkout / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    python = bin_folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shell = 'cat setup.py tools/setup_env.sh | sha256sum | cut -d " " -f 1'
    digest = subprocess.check_output(["bash", "-c", shell], cwd=checkout, text=True).strip()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (checkout / ".venv" / ".setup").write_text(f"{checkout.resolve()} {version}\n{digest}\n")


def test_a_complete_environment_is_left_alone(checkout):
    assert setup_env(checkout, "check").returncode == 1
    make_ready(checkout)
    before = sorted(checkout.rglob("*"))
    assert setup_env(checkout, "check").returncode == 0
    result = setup_env(checkout, "env")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sorted(checkout.rglob("*")) == before


def test_what_makes_an_environment_stale(checkout):
    def stale():
        return setup_env(checkout, "check").returncode == 1

    make_ready(checkout)
    mark = checkout / ".venv" / ".setup"
    ready = mark.read_text()
    mark.write_text("building\n")  # a run that was killed
    assert stale()
    mark.write_text(ready.replace(str(checkout), "/elsewhere"))  # the checkout was moved
    assert stale()
    mark.write_text(ready)
    assert not stale()
    listed = (checkout / "setup.py").read_text()
    (checkout / "setup.py").write_text(listed + "# another list\n")
    assert stale()
    (checkout / "setup.py").write_text(listed)
    assert not stale()
    (checkout / ".venv" / "bin" / "python").unlink()  # the interpreter is gone
    assert stale()


def test_a_foreign_environment_is_never_touched(checkout):
    (checkout / ".venv").mkdir()
    precious = checkout / ".venv" / "pyvenv.cfg"
    precious.write_text("home = /somewhere\n")
    result = setup_env(checkout, "env")
    assert result.returncode == 1
    assert "was not made by this script" in result.stderr
    assert "kept .venv" in setup_env(checkout, "remove").stdout
    assert precious.read_text() == "home = /somewhere\n"


@pytest.mark.parametrize("path", ["", "no_checkout"])
def test_a_missing_checkout_of_detectron2_is_reported_before_anything_is_built(tmp_path, path):
    command = ["make", "--no-print-directory", "test-head", f"D2={tmp_path / path if path else ''}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "is no Detectron2 checkout, a folder with detectron2/__init__.py" in result.stderr.splitlines()[0]
    assert result.stdout == ""


def test_the_docker_image_gets_every_script_and_what_its_environment_is_built_from():
    listed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    scripts = {path.name for path in ROOT.glob("*.py")}
    read_by_setup = set(re.findall(r'ROOT / "([\w.]+)"', (ROOT / "setup.py").read_text()))
    assert {"Makefile", "pyproject.toml", "LICENSE", "configs", "tools"} | scripts | read_by_setup <= listed
    assert all((ROOT / name).exists() for name in listed)
