#!/usr/bin/env python3
"""Trains and evaluates a Detectron2 model from a YAML config: DETR first of all, others too.

python train_net.py --config-file configs/COCO-Detection/detr_R_50.yaml --num-gpus 8
python train_net.py --config-file CFG --eval-only MODEL.WEIGHTS model.pth
"""

import argparse
from typing import Any

from detr.checkpoint import DetrCheckpointer
from detr.engine.setup import check_whole, parse_and_launch, setup
from detr.engine.trainer import Trainer, check_test_sets


def main(args: argparse.Namespace) -> Any:
    """Runs on every rank; returns the evaluation's results."""
    cfg = setup(args)
    if args.eval_only:
        check_test_sets(cfg)
        model = Trainer.build_model(cfg)
        checkpointer = DetrCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        check_whole(checkpointer.fresh)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    parse_and_launch(main, __doc__)
