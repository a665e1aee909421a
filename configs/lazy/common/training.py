"""Optimizer, schedule and everything else of the training, as in ../../Base-DETR.yaml."""

from detectron2.config import LazyCall as L
from fvcore.common.param_scheduler import MultiStepParamScheduler

from detr.engine.solver import build_adamw, parameter_groups

EPOCH = 118_287 // 16  # iterations: images of coco_2017_train in batches of 16

optimizer = L(build_adamw)(
    params=L(parameter_groups)(  # the training script adds the model
        base_lr="${..lr}", weight_decay="${..weight_decay}", backbone_multiplier=0.1
    ),
    lr=1e-4,
    weight_decay=1e-4,
    max_norm=0.1,
    amp="${train.amp.enabled}",
)

# Milestones and their end count in any unit, here in epochs: the drop comes after two thirds of train.max_iter.
lr_multiplier = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[200], num_updates=300)

train = {
    "output_dir": "./output",
    "init_checkpoint": "detectron2://ImageNetPretrained/torchvision/R-50.pkl",
    "max_iter": 300 * EPOCH,
    "amp": {"enabled": False},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "checkpointer": {"period": 5 * EPOCH, "max_to_keep": 3},
    "eval_period": 5 * EPOCH,
    "log_period": 20,
    "device": "cuda",
    "seed": -1,
}
