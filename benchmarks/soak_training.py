"""train_net.py with a record of every step, for the soak: OUTPUT_DIR/steps.jsonl, a line a step.

A line has the losses in full precision, the resident memory in MB, the number of open files, and which process it was.
"""

import argparse
import json
import os
from typing import Any

from detectron2.engine import HookBase

from detr.engine import parse_and_launch
from detr.engine.defaults import setup
from detr.engine.trainer import Trainer

FILE = "steps.jsonl"


class Recorder(HookBase):
    def __init__(self, folder: str) -> None:
        self._file = open(os.path.join(folder, FILE), "a", buffering=1)  # noqa: SIM115  closed with the process

    def after_step(self) -> None:
        iteration = self.trainer.iter
        latest = self.trainer.storage.latest()
        losses = {
            key: value for key, (value, at) in latest.items() if "loss" in key and "/" not in key and at == iteration
        }
        line: dict[str, Any] = {"iteration": iteration, "losses": {key: value.hex() for key, value in losses.items()}}
        line |= {"rss": _resident_megabytes(), "files": len(os.listdir("/proc/self/fd")), "pid": os.getpid()}
        self._file.write(json.dumps(line) + "\n")


def _resident_megabytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def main(args: argparse.Namespace) -> None:
    cfg = setup(args)
    trainer = Trainer(cfg)
    trainer.register_hooks([Recorder(cfg.OUTPUT_DIR)])
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    parse_and_launch(main, __doc__)
