# Stage 2: the mask head on the DETR of stage 1: train.init_checkpoint names the checkpoint of that one.
from detectron2.config import LazyCall as L

from detr.evaluation.evaluators import ThingsEvaluator
from detr.evaluation.panoptic import panoptic_evaluator
from detr.modeling.postprocessing import PanopticSettings

from .common.masks import add_masks
from .panoptic_R_50_boxes import dataloader, lr_multiplier, model, optimizer, train

add_masks(model, dataloader, train, lr_multiplier)
model.postprocessor.panoptic = L(PanopticSettings)(score_threshold=0.85, min_area=4, stuff_merge="original")
dataloader.evaluator = [
    L(ThingsEvaluator)(
        dataset_name="${dataloader.test.dataset.names}",
        tasks=["bbox", "segm"],
        output_dir="${train.output_dir}/inference",
    ),
    L(panoptic_evaluator)(dataset_name="${dataloader.test.dataset.names}", folder="${train.output_dir}/inference"),
]
