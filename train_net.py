#!/usr/bin/env python3
"""Trains and evaluates a Detectron2 model from a YAML config: DETR first of all, others too.

python train_net.py --config-file configs/COCO-Detection/detr_R_50.yaml --num-gpus 8
python train_net.py --config-file CFG --eval-only MODEL.WEIGHTS model.pth
"""

from detr.engine import main, parse_and_launch

if __name__ == "__main__":
    parse_and_launch(main, __doc__)
