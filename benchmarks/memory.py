"""The memory of one side's training step, in a process that does nothing else; prints one line of JSON.

`process` is the peak of the resident memory after three steps, less what the imports took: weights, gradients,
AdamW's averages, activations and whatever the allocator keeps. `tensors` is exact: how far the bytes of torch's
tensors rise above their level before a step. All in MiB.
"""

import json
import sys
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.profiler import ProfilerActivity, profile

from benchmarks.training import Batch, Step, original_step, our_step
from tests.parity.oracle import build_original, load_oracle
from tests.parity.pairs import config

STEPS = 3  # the first makes AdamW's averages, so that the second is the first whole one


def main() -> None:
    side, *numbers = sys.argv[1:6]
    images, height, width, threads = map(int, numbers)
    torch.set_num_threads(threads)
    load_oracle()  # an import, too
    before = _peak()
    batch = Batch(images, height, width)
    step = _step(side, batch, sys.argv[6:])
    with EventStorage():
        for _ in range(STEPS):
            step()
        taken = _peak() - before
        tensors = _tensors(step)
    print(json.dumps({"process": taken, "tensors": tensors}))


def _step(side: str, batch: Batch, opts: list[str]) -> Step:
    if side == "original":
        model, criterion, _ = build_original("detr_R_50")
        return original_step(model, criterion, batch)
    cfg = config("detr_R_50", *opts)
    return our_step(build_model(cfg), cfg, batch)


def _peak() -> float:
    """Of the resident memory; getrusage's would be that of the process that started this one, where that is larger."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _tensors(step: Step) -> float:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [x for x in profiler.profiler.kineto_results.events() if x.name() == "[memory]"]  # type: ignore[union-attr]
    level = highest = 0
    for event in sorted(events, key=lambda x: x.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest / 2**20


if __name__ == "__main__":
    main()
