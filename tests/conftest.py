"""What every test may use: a small `shapes`, a small model, and no data set of the user's."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported. The models are so small that a second thread makes most tests slower, and where other
# programs use the cores many times slower. A value that the user has set stays.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before detr is imported, which registers `shapes` where this variable points.
_DATASETS = tempfile.TemporaryDirectory(prefix="detr-tests-")
os.environ["DETECTRON2_DATASETS"] = _DATASETS.name

import detectron2  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from detectron2.config import CfgNode  # noqa: E402
from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.datasets import register_coco_panoptic  # noqa: E402
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata  # noqa: E402
from detectron2.structures import BitMasks, Boxes, Instances  # noqa: E402

from detr.data.shapes import ensure_shapes  # noqa: E402
from detr.engine.defaults import load_config  # noqa: E402
from detr.engine.terminal import end_quiet  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "configs" / "quickstart" / "shapes_detection.yaml"

# The quickstart's model made smaller still: what is tested is the wiring, not the accuracy.
TINY = {
    "MODEL.DETR.HIDDEN_DIM": 32,
    "MODEL.DETR.DIM_FEEDFORWARD": 32,
    "MODEL.DETR.ENC_LAYERS": 1,
    "MODEL.DETR.DEC_LAYERS": 2,
    "MODEL.DETR.NHEADS": 4,
    "MODEL.DETR.ANCHOR_QUERIES": False,
    "MODEL.DETR.DENOISING.ENABLED": False,
}

# All that may be in a model in training alone.
TRAINING_QUERIES = {
    "MODEL.DETR.DENOISING.ENABLED": True,
    "MODEL.DETR.DENOISING.COPIES": 2,
    "MODEL.DETR.QUERY_GROUPS": 3,
    "MODEL.DETR.ANCHOR_QUERIES": True,
}


def as_opts(settings: dict[str, Any]) -> list[str]:
    """KEY VALUE pairs, as on the command line."""
    return [text for key, value in settings.items() for text in (key, str(value))]


def pytest_configure() -> None:
    """Raises UsageError where `make test-head` names another Detectron2 than the one that is tested with."""
    checkout = os.environ.get("DETECTRON2_CHECKOUT", "")
    if checkout and not Path(detectron2.__file__).resolve().is_relative_to(Path(checkout).resolve()):
        raise pytest.UsageError(f"Detectron2 is imported from {detectron2.__file__}, and not from {checkout}")


def pytest_report_header() -> str:
    return f"detectron2 {detectron2.__version__}: {Path(detectron2.__file__).parent}"


@pytest.fixture(autouse=True)
def _logs_propagate() -> None:
    """Logging, which a training in some test sets up, would hide records from caplog, and show lines of our own."""
    end_quiet()
    for name in ("detr", "detectron2"):
        logging.getLogger(name).propagate = True


@pytest.fixture(scope="session")
def shapes_root() -> Path:
    """The parent of a `shapes` with 48 + 16 images."""
    root = Path(_DATASETS.name)
    ensure_shapes(root, train_images=48, val_images=16)
    return root


@pytest.fixture
def coco_panoptic() -> Iterator[str]:
    """The name of a set of two real images of COCO, registered as Detectron2 registers `coco_2017_val_panoptic`."""
    folder = ROOT.parent / "shared" / "datasets" / "panoptic" / "coco"
    if not folder.is_dir():
        pytest.skip(f"no real panoptic data in {folder}")
    name, annotations = "real_panoptic", folder / "annotations"
    register_coco_panoptic(
        name,
        _get_builtin_metadata("coco_panoptic_standard"),
        str(folder / "val2017"),
        str(folder / "panoptic_val2017"),
        str(annotations / "panoptic_val2017.json"),
        str(annotations / "instances_val2017.json"),
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def registered() -> Iterator[list[str]]:
    """The names of data sets that the test has registered, which are forgotten after it."""
    names: list[str] = []
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the user's cache of downloads."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("FVCORE_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_config() -> Callable[..., CfgNode]:
    """tiny_config({"KEY": value, ...}): the quickstart config with a tiny model, not frozen."""

    def make(settings: dict[str, Any] | None = None) -> CfgNode:
        return load_config(str(QUICKSTART), as_opts({**TINY, **(settings or {})}))

    return make


# A training of two iterations.
SHORT = {"SOLVER.IMS_PER_BATCH": 4, "SOLVER.BASE_LR": 0.001, "SOLVER.MAX_ITER": 2, "TEST.EVAL_PERIOD": 0}


@pytest.fixture
def run_config(tiny_config: Callable[..., CfgNode], tmp_path: Path) -> Callable[..., CfgNode]:
    """As tiny_config, for a training of two iterations whose OUTPUT_DIR exists."""

    def make(settings: dict[str, Any] | None = None) -> CfgNode:
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        return tiny_config({**SHORT, "OUTPUT_DIR": folder, **(settings or {})})

    return make


def make_input(
    boxes: list[list[float]], labels: list[int], size: tuple[int, int] = (96, 128), seed: int = 0
) -> dict[str, Any]:
    """A training input of ``Detr``: boxes xyxy in pixels, size (height, width)."""
    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return {"image": image, "instances": instances, "height": size[0], "width": size[1]}


def with_masks(x: dict[str, Any]) -> dict[str, Any]:
    """The input with masks that fill its boxes."""
    truth = x["instances"]
    masks = torch.zeros(len(truth), *truth.image_size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, truth.gt_boxes.tensor.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    truth.gt_masks = BitMasks(masks)
    return x
