"""What a GPU makes of the models: time, memory, launches and copies; written to GPU.md and gpu.json.

It runs by itself, in under five minutes. With `--smoke`, on small images, it takes the CPU where there is no GPU.
"""

import copy
import functools
import gc
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import MIN_REPEATS, Disagreement, Sample, Unavailable, require
from detr.checkpoint.rows import THINGS, coco_rows
from detr.engine.defaults import load_config
from detr.engine.solver import build_optimizer
from detr.engine.training_step import build_step
from detr.profiling import random_input

FOLDER = Path(__file__).resolve().parent
CONFIGS = FOLDER.parent / "configs"
R50, DC5 = CONFIGS / "COCO-Detection" / "detr_R_50.yaml", CONFIGS / "COCO-Detection" / "detr_R_50_DC5.yaml"
PANOPTIC = CONFIGS / "COCO-PanopticSegmentation" / "detr_R_50.yaml"
BUDGET = 180.0  # seconds, after which nothing more is compiled
TURN = 0.15  # seconds of a turn at least, of whole calls
COMPILED = {"MODEL.DETR.COMPILE": "reduce-overhead"}
BFLOAT16, FLOAT16 = ({"MODEL.DETR.INFERENCE_DTYPE": x} for x in ("bfloat16", "float16"))
AMP = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"}
# Of the sorted scores, on average, against ours in float32.
BOUNDS = {"float32": 1e-3, "half": 2e-2}

Call = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """milliseconds: of a call, medians of turns; memory: MiB of weights, gradients, averages and the highest point of a
    call; launches, copies: of kernels or graphs, and between host and GPU, in a call. None on a CPU"""

    work: str
    contestant: str
    batch: int
    milliseconds: Sample
    memory: float | None
    launches: int | None
    copies: int | None


@dataclass(frozen=True)
class Contestant:
    """make: builds it and returns its call; half: whether it computes in 16 bits; compiled: whether it is"""

    name: str
    make: Callable[[], Call]
    half: bool = False
    compiled: bool = False


class Bench:
    """Measures one piece of work after the other on a device."""

    def __init__(self, device: str, smoke: bool, start: float) -> None:
        self.device, self.cuda, self.smoke, self.start = device, device.startswith("cuda"), smoke, start
        self.repeats = 1 if smoke else MIN_REPEATS
        self.rows: list[Row] = []
        self.notes: list[str] = []

    def run(self, work: str, batch: int, contestants: list[Contestant], scores: Callable[[Any], Tensor] | None) -> None:
        """Builds all, compares the ``scores`` of what they return with the first one's, and lets them take turns."""
        calls, fixed, expected = dict[str, Call](), dict[str, float](), None
        for contestant in contestants:
            if contestant.compiled and time.perf_counter() - self.start > BUDGET:
                self.notes.append(f"{work}, {contestant.name}: left out, {BUDGET:.0f} s were over")
                continue
            before, began = self._allocated(), time.perf_counter()
            try:
                call = contestant.make()
                call()
                found = call()
            except torch.OutOfMemoryError:
                self.notes.append(f"{work}, {contestant.name}: out of memory")
                continue
            if contestant.compiled:
                self.notes.append(f"{work}, {contestant.name}: compiled in {time.perf_counter() - began:.0f} s")
            if scores is not None:
                values = scores(found).float().cpu().flatten().sort().values
                expected = values if expected is None else expected
                apart = {"scores": float((values - expected).abs().mean())}
                bound = {"scores": BOUNDS["half" if contestant.half else "float32"]}
                try:
                    self.notes.append(f"{work}: {require(contestant.name, apart, bound)}")
                except Disagreement as reason:
                    self.notes.append(f"{work}, not timed: {reason}")
                    continue
            del found
            gc.collect()
            calls[contestant.name], fixed[contestant.name] = call, self._allocated() - before
        for name, sample in self._turns(calls).items():
            rise, launches, copies = self._counts(calls[name])
            memory = None if rise is None else fixed[name] + rise
            self.rows.append(Row(work, name, batch, sample, memory, launches, copies))
            print(f"{work}, {name}: {sample.median:.2f} ms", flush=True)
        calls.clear()
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def _turns(self, calls: Mapping[str, Call]) -> dict[str, Sample]:
        """Milliseconds of a call. The host waits for the GPU around each turn, not around each call."""
        counts = {}
        for name, call in calls.items():
            counts[name] = 1 if self.smoke else math.ceil(TURN / self._seconds(call, 1))
        values: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.repeats):
            for name, call in calls.items():
                values[name].append(self._seconds(call, counts[name]) / counts[name] * 1e3)
        return {name: Sample(tuple(taken)) for name, taken in values.items()}

    def _seconds(self, call: Call, count: int) -> float:
        self._wait()
        start = time.perf_counter()
        for _ in range(count):
            call()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _allocated(self) -> float:
        return torch.cuda.memory_allocated() / 2**20 if self.cuda else 0.0

    def _counts(self, call: Call) -> tuple[float | None, int | None, int | None]:
        """MiB by which the allocated memory rises in a call, launches, and copies between host and GPU."""
        if not self.cuda:
            return None, None, None
        before = self._allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        rise = torch.cuda.max_memory_allocated() / 2**20 - before
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            call()
            self._wait()
        names = [x.name for x in recorded.events() or []]
        launches = sum("LaunchKernel" in name or "GraphLaunch" in name for name in names)
        return rise, launches, sum(name.startswith(("Memcpy HtoD", "Memcpy DtoH")) for name in names)


def measure(where: Mapping[str, Any], jobs: int, smoke: bool) -> None:
    """Prints the table, and writes it unless ``smoke``. Raises Unavailable where there is no GPU."""
    if not torch.cuda.is_available() and not smoke:
        raise Unavailable("torch sees no GPU here, so that `gpu` has nothing to measure (--smoke tries it on the CPU)")
    torch.set_num_threads(jobs)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, smoke, time.perf_counter())
    oracle = _oracle(bench)
    size = (96, 128) if smoke else (800, 1066)
    for batch in (1,) if smoke else (1, 8):
        bench.run(f"R50, batch {batch}", batch, _inference(bench, R50, size, batch, oracle), _scores)
    if not smoke:
        bench.run("R50-DC5, batch 1", 1, _inference(bench, DC5, size, 1, oracle)[: 3 if oracle else 2], _scores)
    for kept in (20,) if smoke else (100, 20):
        bench.run(f"R50 panoptic, {kept} queries kept", 1, _panoptic(bench, size, kept), None)
    for batch in (2,) if smoke else (2, 8):
        contestants = _training(bench, (96, 128) if smoke else (512, 640), batch, oracle)
        with EventStorage():
            bench.run(f"training step R50, batch {batch}", batch, contestants, None)
    name = torch.cuda.get_device_name() if bench.cuda else where["cpu"]
    results = {"device": name, "cuda": torch.version.cuda, "notes": bench.notes, **where}
    results["rows"] = [{**asdict(x), "milliseconds": x.milliseconds.values} for x in bench.rows]
    text = markdown(results)
    print(text)
    if not smoke:
        (FOLDER / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (FOLDER / "GPU.md").write_text(text, encoding="utf-8")


def _oracle(bench: Bench) -> Any:
    """The authors' code as the other benchmarks have it, or None."""
    try:
        from benchmarks import training
        from tests.parity import oracle

        oracle.load_oracle()
    except (ImportError, FileNotFoundError) as error:
        bench.notes.append(f"the authors' code is left out: {str(error).splitlines()[0]}")
        return None
    return oracle, training


def _config(path: Path, device: str, settings: Mapping[str, Any] | None = None) -> CfgNode:
    return load_config(
        str(path), ["MODEL.DEVICE", device, *(str(x) for pair in (settings or {}).items() for x in pair)]
    )


def _inference(bench: Bench, path: Path, size: tuple[int, int], batch: int, oracle: Any) -> list[Contestant]:
    """From images on the host to instances on the device; by the original from normalized ones. Ours first."""
    cfg = _config(path, bench.device)
    torch.manual_seed(0)
    weights = build_model(cfg).state_dict()
    theirs = None
    if oracle is not None:
        from tests.parity.pairs import converted

        theirs = oracle[0].build_original(path.stem)
        dropped = torch.ones(theirs[0].class_embed.out_features, dtype=torch.bool)
        dropped[coco_rows(THINGS)] = False
        theirs[0].class_embed.bias.data[dropped] = oracle[0].DROPPED_BIAS  # rows that no class of ours has
        weights = converted(theirs[0], cfg).state_dict()

    def ours(settings: Mapping[str, Any]) -> Call:
        model = build_model(_config(path, bench.device, settings)).eval()
        model.load_state_dict(weights)
        return functools.partial(_without_gradients, model, _images(model, size, batch))

    found = [Contestant("ours, float32", functools.partial(ours, {}))]
    if theirs is not None:
        original = functools.partial(_original, theirs, oracle[0], build_model(cfg), size, batch, bench.device)
        found.append(Contestant("original, float32", original))
    found.append(Contestant("ours, bfloat16", functools.partial(ours, BFLOAT16), half=True))
    if batch == 1:
        found.append(Contestant("ours, float16", functools.partial(ours, FLOAT16), half=True))
        found.append(Contestant("ours, float32, compiled", functools.partial(ours, COMPILED), compiled=True))
    settings = {**BFLOAT16, **COMPILED}
    compiled = functools.partial(ours, settings)
    found.append(Contestant("ours, bfloat16, compiled", compiled, half=True, compiled=True))
    if not bench.cuda:  # on a CPU the generated code takes minutes, and float16 is not for it
        found = [x for x in found if not x.compiled and "float16" not in x.name.replace("bfloat16", "")]
    return found


def _images(model: Any, size: tuple[int, int], batch: int) -> list[dict[str, Any]]:
    """The same for all: the original gets them normalized."""
    torch.manual_seed(1)
    return [random_input(model, size, False) for _ in range(batch)]


@torch.no_grad()
def _without_gradients(model: Any, inputs: Any) -> Any:
    return model(inputs)


def _original(theirs: Any, oracle: Any, ours: Any, size: tuple[int, int], batch: int, device: str) -> Call:
    """As the authors' evaluation runs it, from the batch that their loader makes."""
    model, _, postprocessors = copy.deepcopy(theirs)
    model.to(device).eval()
    images = list(ours.preprocess(_images(ours, size, batch)).tensor.cpu())
    nested = oracle.load_oracle().nested_tensor_from_tensor_list(images)
    sizes = torch.tensor([size] * batch)

    @torch.no_grad()
    def call() -> Any:
        return postprocessors["bbox"](model(nested.to(device)), sizes.to(device))

    return call


def _scores(outputs: list[dict[str, Any]]) -> Tensor:
    return torch.stack([x["instances"].scores if "instances" in x else x["scores"] for x in outputs])


@torch.no_grad()
def _panoptic(bench: Bench, size: tuple[int, int], kept: int) -> list[Contestant]:
    """Boxes, instance masks and the panoptic map, from weights that never say no-object."""

    def ours(settings: Mapping[str, Any]) -> Call:
        torch.manual_seed(0)
        model = build_model(_config(PANOPTIC, bench.device)).eval()
        model.class_embed.bias[-1] = -100.0
        inputs = [random_input(model, size, False)]
        logits = model.forward_network(model.preprocess(inputs), return_intermediate=False).logits[-1, 0]
        scores = logits.softmax(-1)[:, :-1].amax(-1).sort(descending=True).values.tolist()
        threshold = 0.0 if kept >= len(scores) else (scores[kept - 1] + scores[kept]) / 2
        keys = {f"MODEL.DETR.{key}": threshold for key in ("INSTANCE_SCORE_THRESHOLD", "PANOPTIC.SCORE_THRESHOLD")}
        again = build_model(_config(PANOPTIC, bench.device, {**keys, **settings})).eval()
        again.load_state_dict(model.state_dict())
        return functools.partial(_without_gradients, again, inputs)

    make = torch.no_grad()(ours)
    return [
        Contestant("ours, float32", functools.partial(make, {})),
        Contestant("ours, bfloat16", functools.partial(make, BFLOAT16), half=True),
    ]


def _training(bench: Bench, size: tuple[int, int], batch: int, oracle: Any) -> list[Contestant]:
    """Whole steps, as our trainer's and the authors' loop make them; the authors' batch is on the device already."""

    def ours(settings: Mapping[str, Any]) -> Call:
        cfg = _config(R50, bench.device, settings)
        model = build_model(cfg).train()
        batches: Iterator[Any] = itertools.repeat([random_input(model, size, True) for _ in range(batch)])
        step = build_step(cfg, model, batches, build_optimizer(cfg, model))
        step.iter = 0
        return step.run_step

    def original() -> Call:
        made = oracle[1].Batch(batch, *size)
        made.nested = made.nested.to(bench.device)
        made.theirs = [{key: value.to(bench.device) for key, value in x.items()} for x in made.theirs]
        model, criterion, _ = oracle[0].build_original("detr_R_50")
        step: Call = oracle[1].original_step(model.to(bench.device), criterion.to(bench.device), made)
        return step

    found = [Contestant("ours, float32", functools.partial(ours, {}))]
    if oracle is not None:
        found.append(Contestant("original, float32", original))
    return [*found, Contestant("ours, bfloat16", functools.partial(ours, AMP), half=True)]


def markdown(results: Mapping[str, Any]) -> str:
    """The whole of GPU.md."""
    lines = []
    for row in results["rows"]:
        sample = Sample(tuple(row["milliseconds"]))
        counts = ("-" if row[key] is None else f"{row[key]:.0f}" for key in ("memory", "launches", "copies"))
        spread = f"{sample.median:.2f} ({sample.low:.2f} to {sample.high:.2f})"
        lines.append([row["work"], row["contestant"], spread, f"{row['batch'] / sample.median * 1e3:.1f}", *counts])
    headers = ("work", "who", "ms", "images/s", "MiB", "launches", "copies")
    versions = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "torchvision"))
    blocks = [
        "# Results on a GPU",
        f"Written by `make bench ARGS=gpu` on {results['date']}: {results['device']}, CUDA {results['cuda']}, Python "
        f"{results['python']}, {versions}.",
        "ms is the time of a call, the median of turns with the lowest and the highest; the host waits for the GPU "
        "when a turn ends. MiB is what the GPU holds for the contestant at the highest point. Launches are of kernels "
        "or graphs, copies between host and GPU; both in a call. float32 has torch's defaults, TF32 in convolutions. "
        "Weights and images are random, 800 x 1066 in inference and 512 x 640 in training.",
        tabulate(lines, headers, tablefmt="github", disable_numparse=True),
        "\n".join(f"- {note}" for note in results["notes"]),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"
