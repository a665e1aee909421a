"""How long commands take to start: the import, a conversion, and the demo up to its first training step."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.earlier import EARLIER, ROOT, earlier_code
from benchmarks.timing import Disagreement, Result, Sample, Settings, race, take_turns

BEFORE = f"this project at {EARLIER}"
# A script that ends after its first training step.
FIRST_STEP = """
import os, runpy, sys
from detr.engine import Trainer
Trainer.after_step = lambda self: os._exit(0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def imports(settings: Settings) -> Result:
    """`import torch, detr`, less `import torch`."""
    with earlier_code() as earlier:
        turns = {
            "torch": partial(_python, ROOT, "-c", "import torch"),
            "ours": partial(_python, ROOT, "-c", "import torch, detr"),
            BEFORE: partial(_python, earlier, "-c", "import torch, detr"),
            "used": partial(_python, ROOT, "-c", "import torch, detr; detr.Detr"),
        }
        for run in turns.values():  # bytecode is written, and files are in memory
            run()
        taken = take_turns(turns, settings.repeats)
    alone = taken.pop("torch").values
    beyond = {name: _difference(sample.values, alone) for name, sample in taken.items()}
    used = beyond.pop("used")
    return Result(beyond, note=f"where the model is used, `detr.Detr` is there after {used.median:.2f} s")


def converter(settings: Settings) -> Result:
    """An R50 in the authors' format to ours."""
    from detr import model_zoo
    from detr.checkpoint.files import save_file
    from detr.checkpoint.formats import from_detectron2, target_format

    with earlier_code() as earlier, tempfile.TemporaryDirectory() as folder:
        source = str(Path(folder) / "original.pth")
        state = model_zoo.get("detr_R_50", pretrained=False, device="cpu").state_dict()
        save_file({"model": from_detectron2(state, target_format(state, "original"), coco=True).state}, source)

        def convert(code: Path) -> str:
            output = str(Path(folder) / f"{code.name}.pth")
            _python(code, "converter.py", "--source_model", source, "--output_model", output, "--overwrite")
            return output

        samples, agreement = race(
            {"ours": partial(convert, ROOT), BEFORE: partial(convert, earlier)}, settings.repeats, _same_weights
        )
    return Result(samples, agreement=agreement)


def demo(settings: Settings) -> Result:
    """tools/quickstart.py, from the command to the end of the first training step."""
    from detr.data.shapes import ensure_shapes

    ensure_shapes()
    with earlier_code() as earlier, tempfile.TemporaryDirectory() as folder:

        def start(code: Path) -> None:
            _python(code, "-c", FIRST_STEP, "tools/quickstart.py", "--output", str(Path(folder) / code.name))

        turns = {"ours": partial(start, ROOT), BEFORE: partial(start, earlier)}
        for run in turns.values():
            run()
        return Result(take_turns(turns, settings.repeats))


def _python(code: Path, *arguments: str) -> None:
    """Runs Python in a folder with this project's code."""
    environment = {**os.environ, "PYTHONPATH": str(code)}
    with tempfile.TemporaryFile("w+") as output:  # a pipe would be open until the loader's workers have ended too
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=code, env=environment, check=False, stdout=output, stderr=subprocess.STDOUT)
        if done.returncode:
            output.seek(0)
            raise RuntimeError(f"{' '.join(arguments[-4:])} fails: {output.read()[-2000:]}")


def _difference(values: tuple[float, ...], less: tuple[float, ...]) -> Sample:
    """Turn by turn; what is lost in the noise is a millisecond."""
    return Sample(tuple(max(value - other, 0.001) for value, other in zip(values, less, strict=True)))


def _same_weights(outputs: dict[str, str]) -> str:
    ours, theirs = (_weights(path) for path in outputs.values())
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in ours):
        raise Disagreement("the converted weights differ")
    return f"the same {len(ours)} tensors"


def _weights(path: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return content
