"""Stage 2: the mask head on a trained box DETR, which stays as it is."""

from detectron2.config import LazyCall as L

from detr.modeling.mask_head import MaskHead

from .training import EPOCH


def add_masks(model, dataloader, train, lr_multiplier):
    """In place; train.init_checkpoint names the checkpoint of the box DETR."""
    model.backbone.out_features = ["res2", "res3", "res4", "res5"]
    model.pyramid = ["res4", "res3", "res2"]
    model.mask_head = L(MaskHead)(
        d="${..transformer.d}", heads="${..transformer.heads}", pyramid_channels=[1024, 512, 256]
    )
    model.freeze_detr = True
    dataloader.train.mapper.masks = True
    train.max_iter = 25 * EPOCH
    lr_multiplier.milestones, lr_multiplier.num_updates = [15], 25
