"""COCO's boxes with the original's augmentations, as in ../../Base-DETR.yaml."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from omegaconf import OmegaConf

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.loading import load_dicts
from detr.data.transforms import evaluation_augmentations, training_augmentations
from detr.evaluation.coco import FastCOCOEvaluator

dataloader = OmegaConf.create()

dataloader.train = L(build_detection_train_loader)(
    dataset=L(load_dicts)(names="coco_2017_train", filter_empty=False),
    mapper=L(DetrDatasetMapper)(
        is_train=True,
        augmentations=L(training_augmentations)(
            min_sizes=[480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
            max_size=1333,
            crop=("absolute_range", (384, 600)),
        ),
        image_format="RGB",
        num_classes="${model.num_classes}",
        masks=False,
    ),
    total_batch_size=16,
    num_workers=4,
)

dataloader.test = L(build_detection_test_loader)(
    dataset=L(load_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DetrDatasetMapper)(
        is_train=False,
        augmentations=L(evaluation_augmentations)(min_size=800, max_size=1333),
        image_format="${dataloader.train.mapper.image_format}",
        num_classes="${model.num_classes}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(FastCOCOEvaluator)(
    dataset_name="${dataloader.test.dataset.names}",
    tasks=["bbox"],
    output_dir="${train.output_dir}/inference",
)
