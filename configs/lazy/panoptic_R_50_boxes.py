# Stage 1: boxes of the 80 things and of the 53 stuff classes.
from .common.panoptic import dataloader, model
from .common.training import lr_multiplier, optimizer, train
