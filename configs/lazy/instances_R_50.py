# The mask head on a trained box DETR: train.init_checkpoint names the checkpoint of that one.
from .common.masks import add_masks
from .detr_R_50 import dataloader, lr_multiplier, model, optimizer, train

add_masks(model, dataloader, train, lr_multiplier)
dataloader.evaluator.tasks = ["bbox", "segm"]
