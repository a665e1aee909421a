"""AP against training steps and CPU time on the embedded shapes, with and without what is for training alone.

`python -m benchmarks learning` trains each of `RECIPES` with each of `SEEDS`, as many at a time as there are threads,
and writes learning.json after every training, then LEARNING.md and learning.png. A recipe's AP is the median of its
seeds.
"""

import concurrent.futures
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
CONFIG = FOLDER.parent / "configs" / "quickstart" / "shapes_detection.yaml"
SEEDS = (1, 2, 3)
TARGETS = (60.0, 65.0)  # AP, whose steps are reported
STEPS = (1000, 2000, 3000)  # whose AP is reported
AXES = (("step", 1, "steps"), ("seconds", 60, "minutes of one core"))  # key of a point, unit, label
ANCHORS: dict[str, object] = {"MODEL.DETR.ANCHOR_QUERIES": True}
DENOISING: dict[str, object] = {"MODEL.DETR.DENOISING.ENABLED": True}
GROUPS: dict[str, object] = {"MODEL.DETR.QUERY_GROUPS": 3}
PLAIN: dict[str, object] = {
    "MODEL.DETR.ANCHOR_QUERIES": False,
    "MODEL.DETR.DENOISING.ENABLED": False,
    "MODEL.DETR.QUERY_GROUPS": 1,
    "MODEL.DETR.NO_OBJECT_WEIGHT": 0.1,
}
NO_OBJECT: dict[str, object] = {"MODEL.DETR.NO_OBJECT_WEIGHT": 0.3}


@dataclass(frozen=True)
class Recipe:
    """epochs: of 500 steps, over which the learning rate falls to zero; keys: what differs from `PLAIN`"""

    epochs: int
    keys: Mapping[str, object]


RECIPES = {
    "plain": Recipe(12, {}),
    "quickstart": Recipe(6, ANCHORS | DENOISING | NO_OBJECT),
    "anchors and denoising": Recipe(6, ANCHORS | DENOISING),
    "denoising": Recipe(6, DENOISING),
    "all three": Recipe(6, ANCHORS | DENOISING | GROUPS),
    "anchors": Recipe(6, ANCHORS),
    "query groups": Recipe(6, GROUPS),
    "plain, no-object 0.3": Recipe(6, NO_OBJECT),
}
Point = dict[str, float]  # "step", "seconds" of one core without evaluations, "AP", "AP50"


def measure(where: Mapping[str, Any], jobs: int, smoke: bool) -> None:
    """Trains everything and writes the files; with ``smoke`` two short trainings, and nothing is written."""
    runs = [(name, seed) for seed in SEEDS for name in RECIPES]
    if smoke:
        runs = [("plain", 1), ("all three", 1)]
    found: dict[str, dict[str, list[Point]]] = {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_in_process, name, seed, smoke): (name, seed) for name, seed in runs}
        for future in concurrent.futures.as_completed(futures):
            if future.exception():
                pool.shutdown(cancel_futures=True)
            name, seed = futures[future]
            curve = future.result()
            found.setdefault(name, {})[str(seed)] = curve
            print(f"{name}, seed {seed}: AP {curve[-1]['AP']:.1f} after {curve[-1]['step']:.0f} steps", flush=True)
            if not smoke:
                ordered = {name: dict(sorted(found[name].items())) for name in RECIPES if name in found}
                write({"recipes": ordered, **where}, FOLDER)


def write(results: Mapping[str, Any], folder: Path) -> None:
    """learning.json, LEARNING.md and learning.png."""
    (folder / "learning.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "LEARNING.md").write_text(markdown(results), encoding="utf-8")
    draw(results["recipes"], folder / "learning.png")


def _in_process(name: str, seed: int, smoke: bool) -> list[Point]:
    """Runs this module for one training, on one thread."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    command = [sys.executable, "-m", "benchmarks.learning", name, str(seed), *(["--smoke"] if smoke else [])]
    environment = {**os.environ, **dict.fromkeys(threads, "1")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"the training of {name!r} with seed {seed} failed: {done.stderr[-2000:]}")
    return list(json.loads(done.stdout.splitlines()[-1]))


def train(name: str, seed: int, smoke: bool = False) -> list[Point]:
    """The evaluations of one training."""
    from detr.data.shapes import ensure_shapes
    from detr.engine.defaults import load_config

    ensure_shapes()
    recipe, curve = RECIPES[name], list[Point]()
    with tempfile.TemporaryDirectory() as folder:
        keys: dict[str, object] = {**PLAIN, **recipe.keys, "OUTPUT_DIR": folder, "SEED": seed, "TEST.EVAL_EPOCHS": 1}
        keys |= {"SOLVER.MAX_EPOCHS": recipe.epochs, "SOLVER.CHECKPOINT_EPOCHS": 0}
        if smoke:
            keys |= {"SOLVER.MAX_ITER": 2, "TEST.EVAL_PERIOD": 0}
        run(load_config(str(CONFIG), [str(x) for pair in keys.items() for x in pair]), curve.append)
    return curve


def run(cfg: Any, record: Callable[[Point], object]) -> None:
    """Trains, and hands over a point after every evaluation. cfg: a CfgNode"""
    from detectron2.engine import HookBase

    from detr.engine.trainer import Trainer

    class TimedTrainer(Trainer):
        seconds = 0.0

        def run_step(self) -> None:
            start = time.process_time()
            super().run_step()
            self.seconds += time.process_time() - start

    class Recorder(HookBase):
        """Comes after the hook that evaluates."""

        def after_step(self) -> None:
            latest = self.trainer.storage.latest()
            step = self.trainer.iter + 1
            if "bbox/AP" in latest and latest["bbox/AP"][1] == self.trainer.iter:
                record(self.point(step))

        def after_train(self) -> None:
            record(self.point(self.trainer.max_iter))

        def point(self, step: int) -> Point:
            latest = self.trainer.storage.latest()
            scores = {key: latest[f"bbox/{key}"][0] for key in ("AP", "AP50")}
            return {"step": step, "seconds": self.trainer.seconds, **scores}

    trainer = TimedTrainer(cfg)
    trainer.register_hooks([Recorder()])
    trainer.resume_or_load(resume=False)
    trainer.train()


def steps_to(curve: Sequence[Point], ap: float, unit: str = "step") -> float | None:
    """Steps, or with ``unit`` seconds, until this AP, on the line between two evaluations; None where it never is."""
    before = {"step": 0.0, "seconds": 0.0, "AP": 0.0}
    for point in curve:
        if point["AP"] >= ap:
            share = (ap - before["AP"]) / (point["AP"] - before["AP"])
            return before[unit] + share * (point[unit] - before[unit])
        before = point
    return None


def _median(values: Sequence[float | None]) -> float | None:
    """None counts as more than any number."""
    value = statistics.median_high([float("inf") if x is None else x for x in values])
    return None if value == float("inf") else value


def _ap_at(curve: Sequence[Point], step: int) -> float | None:
    return next((point["AP"] for point in curve if point["step"] == step), None)


def markdown(results: Mapping[str, Any]) -> str:
    """The whole of LEARNING.md."""
    from tabulate import tabulate

    recipes: Mapping[str, Mapping[str, list[Point]]] = results["recipes"]
    body = []
    for name, curves in recipes.items():
        runs = list(curves.values())
        last = sorted(curve[-1]["AP"] for curve in runs)
        at = [_median([_ap_at(curve, step) for curve in runs]) for step in STEPS]
        steps = [_median([steps_to(curve, ap) for curve in runs]) for ap in TARGETS]
        cost = statistics.median(curve[-1]["seconds"] / curve[-1]["step"] for curve in runs)
        body.append(
            [
                name,
                len(runs),
                *("-" if x is None else f"{x:.1f}" for x in at),
                f"{statistics.median(last):.1f} ({last[0]:.1f} to {last[-1]:.1f}), {runs[0][-1]['step']:.0f}",
                *("-" if x is None else f"{x:.0f}" for x in steps),
                f"{1000 * cost:.0f} ms",
            ]
        )
    head = ["recipe", "seeds", *map(str, STEPS), "at the end (seeds), steps", *(f"to AP {x:g}" for x in TARGETS)]
    table = tabulate(body, headers=[*head, "a step"], tablefmt="pipe", disable_numparse=True)
    versions = f"torch {results['versions']['torch']}, {results['cpu']}"
    return (
        "# Learning\n\nMade by `benchmarks/learning.py`: box AP on the 500 validation images of the embedded "
        "shapes against training steps in batches of 8, medians of the seeds, of two seeds the slower one's "
        "steps. `plain` is DETR with 12 epochs, over "
        "which the learning rate falls to zero; the others have half of it. `quickstart` has anchors, denoising and a "
        "no-object weight of 0.3 instead of 0.1. Steps to an AP are on the line between two "
        "evaluations, which are 500 steps apart. A step's time is that of one core, with other trainings beside it. "
        f"{results['date']}, {versions}.\n\n"
        f"{table}\n\n![AP against steps and time](learning.png)\n"
    )


def draw(recipes: Mapping[str, Mapping[str, list[Point]]], path: Path) -> None:
    """Two panels, AP against steps and against time: of each recipe the seeds' median and range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axis, (unit, scale, label) in zip(panels, AXES, strict=True):
        for name, curves in recipes.items():
            runs = list(curves.values())
            x = [statistics.median(p[unit] for p in points) / scale for points in zip(*runs, strict=True)]
            ap = [sorted(p["AP"] for p in points) for points in zip(*runs, strict=True)]
            (line,) = axis.plot(x, [statistics.median(y) for y in ap], marker="o", markersize=3, label=name)
            axis.fill_between(x, [y[0] for y in ap], [y[-1] for y in ap], alpha=0.15, color=line.get_color())
        axis.set(xlabel=label, ylim=(0, 80))
        axis.grid(alpha=0.3)
    panels[0].set_ylabel("box AP")
    panels[0].legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], int(sys.argv[2]), smoke="--smoke" in sys.argv)))
