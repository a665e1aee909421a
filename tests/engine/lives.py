"""A training in lives: each is a process that is killed somewhere and that the next one resumes.

``main`` runs in a process that has imported everything once, and forks one for each life.
"""

import io
import json
import os
import random
import signal
import traceback
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, defaults
from detectron2.utils.env import seed_all_rng

from detr.data.shapes import ensure_shapes
from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer
from tests.conftest import QUICKSTART, TINY, as_opts

STEPS = 32
LOSSES = "losses.jsonl"
KINDS = ("step", "bytes", "file", "evaluation", "time")  # where a life ends
# All that is random: order, flips, crops, dropout, denoising. A checkpoint before each evaluation, and two more.
SETTINGS = {
    **TINY,
    "MODEL.DETR.DENOISING.ENABLED": True,
    "MODEL.DETR.DROPOUT": 0.1,
    "INPUT.CROP.ENABLED": True,
    "INPUT.RANDOM_FLIP": "horizontal",
    "SEED": 1,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.001,
    "SOLVER.MAX_ITER": STEPS,
    "SOLVER.STEPS": (20,),
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.CHECKPOINTS_KEPT": 2,
    "SOLVER.PATIENCE": 100,
    "SOLVER.EMA_DECAY": 0.9,
    "TEST.EVAL_PERIOD": 8,
    "TEST.DRY_RUN": False,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
}


def config(folder: Path, settings: dict[str, Any]) -> Any:
    return load_config(str(QUICKSTART), as_opts({**SETTINGS, "OUTPUT_DIR": folder, **settings}))


class Losses(HookBase):
    """Adds all losses of this rank at every step, in hexadecimal, to a file: a JSON object a line."""

    def __init__(self, model: torch.nn.Module, path: Path) -> None:
        self.path = path
        model.register_forward_hook(self.record)

    def record(self, model: torch.nn.Module, inputs: Any, losses: Any) -> None:
        if not model.training:
            return
        images = [x["file_name"] for x in inputs[0]]
        values = {name: float(x.detach()).hex() for name, x in losses.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"iteration": self.trainer.iter, "images": images, **values}) + "\n")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(cfg: Any, path: Path, *, resume: bool, trainer: type[Trainer] = Trainer) -> Trainer:
    """Trains, and adds the losses to the file; resumes where there is something to resume from."""
    run = trainer(cfg)
    run.register_hooks([Losses(run.model, path)])
    run.resume_or_load(resume=resume)
    run.train()
    return run


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_call(owner: Any, name: str, call: int, before: bool) -> None:
    """Replaces a function of this process by one that kills it at so many calls."""
    original, calls = getattr(owner, name), iter(range(call, -1, -1))

    def dying(*args: Any, **options: Any) -> Any:
        last = next(calls) == 0
        if last and before:
            die()
        result = original(*args, **options)
        if last:
            die()
        return result

    setattr(owner, name, dying)


def set_trap(kind: str, numbers: random.Random) -> None:
    """Lets this process die at a random point of its life."""
    if kind == "step":
        die_at_call(Trainer, "run_step", numbers.randrange(1, 9), before=False)
    elif kind == "bytes":
        save, saves = torch.save, iter(range(numbers.randrange(3), -1, -1))

        def dying_save(content: Any, file: Any) -> None:
            if next(saves):
                save(content, file)
                return
            save(content, whole := io.BytesIO())
            file.write(whole.getvalue()[: numbers.randrange(whole.tell())])
            file.flush()
            die()

        torch.save = dying_save
    elif kind == "file":  # of checkpoints and of last_checkpoint
        name = numbers.choice(["fsync", "replace", "remove"])
        die_at_call(os, name, numbers.randrange(2 if name == "remove" else 5), before=numbers.random() < 0.5)
    elif kind == "evaluation":
        die_at_call(defaults, "inference_on_dataset", 0, before=numbers.random() < 0.5)
    else:
        signal.signal(signal.SIGALRM, lambda *_: die())
        signal.setitimer(signal.ITIMER_REAL, numbers.uniform(0.1, 2.0))


def life(folder: Path, numbers: random.Random | None) -> int:
    """Trains on in a process of its own, which dies at a random point, or ends where there are no numbers.

    Returns its status, negative for a signal.
    """
    kind = numbers.choice(KINDS) if numbers else "whole"
    workers = numbers.choice([0, 0, 2]) if numbers else 0
    if pid := os.fork():
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(f"{folder.name}: {kind}, {workers} workers, status {status}", flush=True)
        return status
    try:
        if numbers:
            set_trap(kind, numbers)
        cfg = config(folder, {"DATALOADER.NUM_WORKERS": workers})
        seed_all_rng(cfg.SEED)  # as Detectron2's default_setup
        train(cfg, folder / LOSSES, resume=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def main(path: str, kills: int, seed: int) -> None:
    """Trains in PATH/whole undisturbed, and in PATH/0, 1 ... until so many processes have been killed."""
    folder = Path(path)
    ensure_shapes(Path(os.environ["DETECTRON2_DATASETS"]), train_images=48, val_images=4)
    (folder / "whole").mkdir()
    statuses, run = [life(folder / "whole", None)], 0
    numbers = random.Random(seed)
    while sum(status < 0 for status in statuses) < kills:
        (folder / str(run)).mkdir()
        while True:
            left = kills - sum(status < 0 for status in statuses)
            statuses.append(life(folder / str(run), numbers if left else None))
            if statuses[-1] >= 0:
                break
        run += 1
    assert all(status <= 0 for status in statuses), statuses
