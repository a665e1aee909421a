# DC5 was trained at one image per GPU and must be evaluated so: it is not robust to padding.
from .panoptic_R_50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.dilated = True
