"""DETR R50, as in ../../Base-DETR.yaml."""

from detectron2.config import LazyCall as L

from detr import Detr
from detr.modeling.criterion import SetCriterion
from detr.modeling.matcher import HungarianMatcher
from detr.modeling.position_encoding import SinePositionEncoding
from detr.modeling.postprocessing import Postprocessor, which_are_things
from detr.modeling.torchvision_resnet import build_torchvision_resnet
from detr.modeling.transformer import Transformer

model = L(Detr)(
    backbone=L(build_torchvision_resnet)(depth=50, dilated=False, out_features=["res5"], freeze_at=2),
    in_feature="res5",
    position_encoding=L(SinePositionEncoding)(channels="${..transformer.d}"),
    transformer=L(Transformer)(
        d=256, heads=8, encoder_layers=6, decoder_layers=6, feedforward=2048, dropout=0.1, pre_norm=False
    ),
    criterion=L(SetCriterion)(
        # The weights of L1 and GIoU serve the matching cost and the losses.
        matcher=L(HungarianMatcher)(cost_class=1.0, cost_bbox="${..l1_weight}", cost_giou="${..giou_weight}"),
        num_classes="${..num_classes}",
        l1_weight=5.0,
        giou_weight=2.0,
        no_object_weight=0.1,
    ),
    postprocessor=L(Postprocessor)(
        # num_things: the first so many classes are things; 0 for all
        is_thing=L(which_are_things)(num_classes="${...num_classes}", dataset_names=(), required=False, num_things=0),
        max_detections=100,
    ),
    num_classes=80,
    num_queries=100,
    pixel_mean=[123.675, 116.280, 103.530],
    pixel_std=[58.395, 57.120, 57.375],
)
