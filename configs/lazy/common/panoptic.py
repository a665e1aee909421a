"""COCO's 80 things and 53 stuff classes: what all panoptic configs change, stage 1 among them."""

from detectron2.config import LazyCall as L

from detr.data.panoptic_mapper import DetrPanopticMapper
from detr.evaluation.evaluators import ThingsEvaluator

from .data import dataloader
from .model import model

model.num_classes = 133
model.postprocessor.is_thing.num_things = 80

dataloader.train.dataset.names = "coco_2017_train_panoptic"
dataloader.train.mapper._target_ = DetrPanopticMapper
dataloader.test.dataset.names = "coco_2017_val_panoptic"
dataloader.evaluator = L(ThingsEvaluator)(
    dataset_name="${dataloader.test.dataset.names}", tasks=["bbox"], output_dir="${train.output_dir}/inference"
)
