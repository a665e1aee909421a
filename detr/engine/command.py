"""What ``train_net.py`` runs, for scripts of one's own too."""

import argparse
import os
import time
from typing import Any

from detr.engine.defaults import setup
from detr.engine.terminal import format_seconds, show_section
from detr.engine.trainer import Trainer
from detr.whole_files import name_disk_errors


def main(args: argparse.Namespace) -> Any:
    """Trains, or with ``args.eval_only`` evaluates. Runs on every rank; returns the evaluation's results.

    args: of Detectron2's command line, see ``parse_and_launch``

    Raises InputError for a config, data sets or weights that do not do, DiskError where a disk is full.
    """
    cfg = setup(args)
    start = time.perf_counter()
    with name_disk_errors(cfg.OUTPUT_DIR):
        if args.eval_only:
            return Trainer.evaluate(cfg, resume=args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        results = trainer.train()
    best = os.path.join(cfg.OUTPUT_DIR, "model_best.pth")
    lines = [f"after {format_seconds(time.perf_counter() - start)}: {os.path.join(cfg.OUTPUT_DIR, 'model_final.pth')}"]
    show_section("Done", lines + [f"{best}, of the best evaluation"] * os.path.isfile(best))
    return results
