#!/usr/bin/env python3
"""Trains and evaluates a Detectron2 model from a YAML config: DETR first of all, others too.

python train_net.py --config-file configs/COCO-Detection/detr_R_50.yaml --num-gpus 8
python train_net.py --config-file CFG --eval-only MODEL.WEIGHTS model.pth
"""

import argparse
from typing import Any

from detr.engine.defaults import parse_and_launch, save_config, setup
from detr.engine.trainer import Trainer


def main(args: argparse.Namespace) -> Any:
    """Runs on every rank; returns the evaluation's results."""
    cfg = setup(args)
    if args.eval_only:
        return Trainer.evaluate(cfg, resume=args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    save_config(cfg)
    return trainer.train()


if __name__ == "__main__":
    parse_and_launch(main, __doc__)
