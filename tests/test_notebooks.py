"""notebooks/: they run from the first cell to the last, with other parameters; a model and images are at hand."""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

from detr.checkpoint import DetrCheckpointer, read_card
from detr.data.loading import load_dataset
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts
from tests.lively import build_lively

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def parameters(notebook: Any) -> int:
    """Where the cell with the parameters is."""
    (index,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    return index


def run(name: str, folder: Path, **values: Any) -> tuple[str, int]:
    """Executes a notebook as Jupyter would in ``folder``, with ``values`` in the place of its parameters.

    Returns its printed text, and the number of pictures that it shows.
    """
    notebook = nbformat.read(ROOT / "notebooks" / name, as_version=4)
    index = parameters(notebook)
    for key, value in values.items():
        notebook.cells[index].source, replaced = re.subn(
            rf"^{key} = [^#\n]+?(?=  #|$)",
            lambda _, text=f"{key} = {value!r}": text,
            notebook.cells[index].source,
            flags=re.MULTILINE,
        )
        assert replaced == 1
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"})
    outputs = [x for cell in notebook.cells if cell.cell_type == "code" for x in cell.outputs]
    text = "".join(x.text for x in outputs if x.output_type == "stream")
    return text, sum("image/png" in x.get("data", {}) for x in outputs)


@pytest.fixture(scope="module")
def weights(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a tiny DETR, which finds many things of shapes' classes."""
    folder = tmp_path_factory.mktemp("weights")
    load_dataset("shapes_train")  # by which its classes have names
    DetrCheckpointer(build_lively(QUICKSTART, TINY), str(folder)).save("tiny")
    return str(folder / "tiny.pth")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_results(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    parameters(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []
    assert max(len(line) for cell in code for line in cell.source.splitlines()) <= 120


@pytest.mark.slow
def test_the_step_by_step_detection_is_the_predictors(weights: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((360, 270)).save(tmp_path / "photo.png")
    text, pictures = run("inference.ipynb", tmp_path, MODEL=weights, IMAGE="photo.png")
    found, compared, difference = re.search(
        r"(\d+) objects .*\n.*?(\d+) boxes, at most (\d+\.\d+) pixels", text
    ).groups()
    assert found == compared
    assert 3 < int(found) < 100  # some, and not all queries
    assert float(difference) < 0.01
    assert pictures == 2


@pytest.mark.slow
def test_fine_tuning_from_data_to_a_picture_of_predictions(weights: str, tmp_path: Path) -> None:
    options = [*as_opts({"SOLVER.MAX_ITER": 3, "SOLVER.IMS_PER_BATCH": 4, "DATALOADER.NUM_WORKERS": 0})]
    text, pictures = run("finetune.ipynb", tmp_path, OUTPUT="run", WEIGHTS=weights, OPTIONS=options)
    assert "200 training images of disc, square, triangle, star" in text
    (threshold,) = re.findall(r"box AP \d+\.\d, AP50 \d+\.\d; best threshold: (.+)", text)
    assert pictures == 4
    card = read_card(str(tmp_path / "run" / "model_best.pth"))
    assert card is not None
    assert card.class_names == ("disc", "square", "triangle", "star")
    assert str(card.score_threshold).lower() == threshold  # none, where three steps have not found anything
    trained, before = (torch.load(path, weights_only=True)["model"]["query_embed.weight"]
                       for path in (tmp_path / "run" / "model_final.pth", weights))  # fmt: skip
    assert not torch.equal(trained, before)
