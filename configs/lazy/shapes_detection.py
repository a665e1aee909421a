# The twin of ../quickstart/shapes_detection.yaml: DETR made small enough for the embedded shapes and two CPU cores.
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from detr.modeling.denoising import Denoising
from detr.modeling.small_resnet import build_small_resnet
from detr.modeling.training_queries import TrainingQueries

from .detr_R_50 import dataloader, model, optimizer, train

EPOCH = 4000 // 8  # iterations: images of shapes_train in batches of 8

model.backbone = L(build_small_resnet)(stem_channels=16, res2_channels=32, norm="BN", out_features=["res4"])
model.in_feature = "res4"  # stride 16: 8 x 8 positions
model.transformer.update(d=128, heads=4, feedforward=512, encoder_layers=2, decoder_layers=3, dropout=0.0)
model.criterion.no_object_weight = 0.3
model.num_classes = 4
model.num_queries = 20
model.training_queries = L(TrainingQueries)(
    num_queries="${..num_queries}",
    d="${..transformer.d}",
    anchors=True,
    denoising=L(Denoising)(num_classes="${...num_classes}", copies=4, box_noise=0.4, label_noise=0.2, negatives=True),
)

dataloader.train.dataset.names = "shapes_train"
dataloader.train.mapper.augmentations.update(min_sizes=[128], max_size=128, crop=None)
dataloader.train.update(total_batch_size=8, num_workers=0, aspect_ratio_grouping=False)
dataloader.test.dataset.names = "shapes_val"
dataloader.test.mapper.augmentations.update(min_size=128, max_size=128)
dataloader.test.num_workers = 0

optimizer.lr = 5e-4
optimizer.params.backbone_multiplier = 2.0
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1, end_value=0), warmup_factor=0.01, warmup_length=200 / (6 * EPOCH)
)

train.update(
    output_dir="./output/shapes_detection",
    init_checkpoint="",
    max_iter=6 * EPOCH,
    checkpointer={"period": 3 * EPOCH, "max_to_keep": 3},
    eval_period=3 * EPOCH,
    device="cpu",
    seed=1,
)
