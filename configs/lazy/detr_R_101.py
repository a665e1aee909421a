from .detr_R_50 import dataloader, lr_multiplier, model, optimizer, train

model.backbone.depth = 101
train.init_checkpoint = "torchvision://resnet101"
