"""An hour of training, evaluating, killing and resuming: python -m benchmarks.soak --minutes 60, or make soak.

One training runs undisturbed for a third of the time. Its losses are the right ones, and its memory and open files must
not grow. For the rest of the time another one runs in lives that end at random moments: by SIGKILL, by SIGKILL while it
writes a checkpoint, by SIGTERM, or by SIGKILL with its last checkpoint damaged afterwards. Every loss has to be the
undisturbed training's, to the bit. Figures go to --output as JSON, and as Markdown to the terminal; status 1 where
something grows or differs.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak_training import FILE

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "quickstart" / "shapes_detection.yaml"
IMAGES, TEST_IMAGES = 48, 8
SETTINGS = {
    "MODEL.DETR.HIDDEN_DIM": 32,
    "MODEL.DETR.DIM_FEEDFORWARD": 32,
    "MODEL.DETR.ENC_LAYERS": 1,
    "MODEL.DETR.DEC_LAYERS": 2,
    "MODEL.DETR.NHEADS": 4,
    "MODEL.DETR.DROPOUT": 0.1,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1_000_000,  # never reached; the schedule is the same for all
    "SOLVER.CHECKPOINT_PERIOD": 20,
    "TEST.EVAL_PERIOD": 60,
    "DATALOADER.NUM_WORKERS": 1,
    "SEED": 1,
}
ENDS = ("kill", "kill while a checkpoint is written", "SIGTERM", "kill, then damage")
STARTING = 300.0  # seconds for a process to take its first step
STOPPING = 120.0  # seconds for SIGTERM to be obeyed, and for children to end
WARM_UP = 0.3  # of a life's steps, before memory is measured
BLOCKS = 20  # of steps, whose means the line is fitted to: steps that follow each other are not independent
ENOUGH = 1500  # steps after the warm-up, for a slope to be judged: the history of metrics is full after 1,000
MOST = {"rss": 2.0, "files": 0.5}  # a 1,000 steps: MB, handles


@dataclass
class Slope:
    """Of a line through memory or open files, a 1,000 steps, with its standard error."""

    value: float
    error: float
    steps: int

    def grows(self, most: float) -> bool:
        return self.steps >= ENOUGH and self.value - 2 * self.error > most

    def __str__(self) -> str:
        return f"{self.value:+.3f} ± {self.error:.3f}" + (" (too few steps to judge)" if self.steps < ENOUGH else "")


@dataclass
class Figures:
    """What a soak has seen."""

    minutes: float = 0.0
    reference_steps: int = 0
    steps: int = 0  # of the lives, those that were done again included
    equal_steps: int = 0
    folders: int = 0
    lives: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)  # after SIGTERM
    fallbacks: int = 0  # lives that have skipped a damaged checkpoint, or a last_checkpoint that was missing
    slopes: dict[str, Slope] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Life:
    """A process that trains in a folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.first_line = len(read_steps(folder))
        opts = [str(x) for pair in {**SETTINGS, "OUTPUT_DIR": folder}.items() for x in pair]
        command = [sys.executable, "-m", "benchmarks.soak_training", "--config-file", str(CONFIG), "--num-gpus", "0"]
        self._errors = open(folder / "stderr.txt", "w+")  # noqa: SIM115  closed in end
        self.process = subprocess.Popen(
            [*command, "--resume", *opts],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
        )

    @property
    def steps(self) -> list[dict[str, Any]]:
        return read_steps(self.folder)[self.first_line :]

    def wait(self, condition: Callable[[], object], seconds: float, every: float = 0.2) -> bool:
        """Whether the condition came true before the time was over or the process ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            if condition():
                return True
            time.sleep(every)
        return False

    def end(self, signum: int) -> tuple[int, str, bool]:
        """Sends a signal. Returns the status, what was on stderr, and whether all its children were gone soon."""
        if self.process.poll() is None:
            self.process.send_signal(signum)
        try:
            status = self.process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            status = -1000
        end, alone = time.monotonic() + STOPPING, False
        while time.monotonic() < end and not alone:
            try:
                os.killpg(self.process.pid, 0)
                time.sleep(0.2)
            except ProcessLookupError:
                alone = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._errors.seek(0)
        text = self._errors.read()
        self._errors.close()
        return status, text, alone


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The lines of its record; one that a kill has cut is skipped."""
    path, steps = folder / FILE, []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            steps.append(json.loads(line))
    return steps


def slope(steps: list[dict[str, Any]], key: str) -> Slope:
    """The least-squares slope through the means of blocks, without the warm-up."""
    used = steps[int(len(steps) * WARM_UP) :]
    if len(used) < 2 * BLOCKS:
        return Slope(0.0, 0.0, len(used))
    y = np.array([block.mean() for block in np.array_split([step[key] for step in used], BLOCKS)])
    x = np.array([block.mean() for block in np.array_split([step["iteration"] for step in used], BLOCKS)]) / 1000
    x -= x.mean()
    value = float(x @ (y - y.mean()) / (x @ x))
    residuals = y - y.mean() - value * x
    return Slope(value, float(np.sqrt(residuals @ residuals / (BLOCKS - 2) / (x @ x))), len(used))


def compare(steps: list[dict[str, Any]], reference: dict[int, dict[str, str]], figures: Figures) -> None:
    """Counts steps, and those whose losses are the reference's; the first that is not is a problem."""
    for step in steps:
        right = reference.get(step["iteration"])
        if right is None:
            continue
        figures.steps += 1
        if right == step["losses"]:
            figures.equal_steps += 1
        elif figures.steps - figures.equal_steps == 1:
            figures.problems.append(f"the losses of iteration {step['iteration']} are not those of the undisturbed run")


def damage_last(folder: Path, rng: random.Random) -> None:
    """Cuts, empties or overwrites the checkpoint that last_checkpoint names, where there are others to go on from."""
    last = folder / "last_checkpoint"
    path = folder / (last.read_text().strip() if last.exists() else "none")
    if not path.is_file() or len(list(folder.glob("model_0*.pth"))) < 2:
        return
    content = bytearray(path.read_bytes())
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(content[: rng.randrange(len(content))])
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        at = rng.randrange(len(content) // 4, len(content) // 2)
        content[at : at + 64] = bytes(x ^ 255 for x in content[at : at + 64])
        path.write_bytes(content)
    else:
        last.unlink()


def live(folder: Path, environment: dict[str, str], rng: random.Random, most: float, figures: Figures) -> None:
    """One life, which ends in one of four ways after at most ``most`` seconds of training."""
    before, has_checkpoints = list(folder.glob(".*.part")), any(folder.glob("model_0*.pth"))
    life, how = Life(folder, environment), rng.choice(ENDS)
    figures.lives += 1
    figures.ends[how] = figures.ends.get(how, 0) + 1
    early = rng.random() < 0.1  # while it starts
    started = life.wait(lambda: life.steps, rng.uniform(0, 15) if early else STARTING)
    if started:
        if any(path.exists() for path in before):
            figures.problems.append(f"life {figures.lives} left unfinished files of the one before")
        if has_checkpoints and life.steps[0]["iteration"] == 0:
            figures.problems.append(f"life {figures.lives} began again")
        life.wait(lambda: False, rng.uniform(0, most))
        if how == ENDS[1]:
            life.wait(lambda: any(folder.glob(".*.part")), 60, every=0.001)
    elif not early:
        figures.problems.append(f"life {figures.lives} took no step within {STARTING:.0f} s, or ended")
    ended_alone = life.process.poll() is not None
    status, errors, alone = life.end(signal.SIGTERM if how == "SIGTERM" else signal.SIGKILL)
    if ended_alone or "Traceback" in errors or status == -1000:
        line = (errors.strip().splitlines() or [""])[-1]
        figures.problems.append(f"life {figures.lives} ended with status {status}: {line}")
    if not alone:
        figures.problems.append(f"life {figures.lives} left processes behind")
    if how == "SIGTERM" and started:
        figures.statuses[str(status)] = figures.statuses.get(str(status), 0) + 1
    figures.fallbacks += "the newest checkpoint that is whole" in errors
    if how == ENDS[3]:
        damage_last(folder, rng)


def soak(minutes: float, folder: Path, seed: int) -> Figures:
    """Runs it, in new folders below ``folder``."""
    from detr.data.shapes import ensure_shapes

    ensure_shapes(folder / "data", train_images=IMAGES, val_images=TEST_IMAGES)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(folder / "data")}
    figures, rng, start = Figures(), random.Random(seed), time.monotonic()
    undisturbed = Life(folder / "undisturbed", environment)
    if not undisturbed.wait(lambda: undisturbed.steps, STARTING):
        figures.problems.append("the undisturbed training took no step")
    undisturbed.wait(lambda: False, minutes * 60 / 3)
    _, errors, _ = undisturbed.end(signal.SIGKILL)
    steps = undisturbed.steps
    if not steps:
        figures.problems.append(f"it said: {errors[-500:]}")
        return figures
    reference = {step["iteration"]: step["losses"] for step in steps}
    figures.reference_steps = len(steps)
    figures.slopes = {key: slope(steps, key) for key in MOST}
    # A folder's lives end before the reference does.
    most = min(60.0, minutes * 60 / 20)
    while time.monotonic() - start < minutes * 60 and not figures.problems:
        run = folder / f"run_{figures.folders}"
        done = max((step["iteration"] for step in read_steps(run)), default=0)
        if done > len(steps) * 0.9:
            figures.folders += 1
            continue
        live(run, environment, rng, most, figures)
    figures.folders += 1
    for run in sorted(folder.glob("run_*")):
        compare(read_steps(run), reference, figures)
    for key, found in figures.slopes.items():
        if found.grows(MOST[key]):
            figures.problems.append(f"{key} grows by {found} in 1,000 steps")
    figures.minutes = (time.monotonic() - start) / 60
    return figures


def markdown(figures: Figures) -> str:
    """For docs/reliability.md."""

    def counts(counter: dict[str, int]) -> str:
        return ", ".join(f"{number} x {name}" for name, number in sorted(counter.items())) or "none"

    rows = {
        "time": f"{figures.minutes:.0f} minutes",
        "undisturbed training": f"{figures.reference_steps} steps",
        "lives": f"{figures.lives}, in {figures.folders} folders: {counts(figures.ends)}",
        "status after SIGTERM": counts(figures.statuses),
        "fallbacks to an earlier checkpoint": str(figures.fallbacks),
        "steps with the undisturbed training's losses": f"{figures.equal_steps} of {figures.steps}",
        "memory": f"{figures.slopes.get('rss', 'not measured')} MB per 1,000 steps",
        "open files": f"{figures.slopes.get('files', 'not measured')} per 1,000 steps",
        "problems": "; ".join(figures.problems) or "none",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--output", default="output/soak.json", help="file for the figures")
    parser.add_argument("--folder", help="for the trainings; by default a temporary one, which is removed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments to kill")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="detr-soak-") as temporary:
        figures = soak(args.minutes, Path(args.folder or temporary).resolve(), args.seed)
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    Path(args.output).write_text(json.dumps(asdict(figures), indent=1) + "\n")
    print(markdown(figures))
    return int(bool(figures.problems))


if __name__ == "__main__":
    sys.exit(main())
