"""Detectron2's other models with the same Trainer, on the same images as DETR."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic_separated
from PIL import Image

from detr.data.panoptic_mapper import read_segment_ids
from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer
from tests.conftest import ROOT, as_opts

MASK_RCNN = ROOT / "configs" / "quickstart" / "shapes_mask_rcnn.yaml"
SHORT = {"SOLVER.MAX_ITER": 2, "SOLVER.IMS_PER_BATCH": 2, "TEST.EVAL_PERIOD": 0, "SOLVER.WARMUP_ITERS": 0}

# Detectron2 reads masks as pycocotools gives them.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")


def train(tmp_path, settings):
    cfg = load_config(str(MASK_RCNN), as_opts({**SHORT, "OUTPUT_DIR": tmp_path, **settings}))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    return trainer, trainer.train()


@pytest.mark.slow
def test_mask_r_cnn_trains_as_in_detectron2_and_is_evaluated(shapes_root, tmp_path):
    trainer, results = train(tmp_path, {})
    assert type(trainer.optimizer).__mro__[1] is torch.optim.SGD  # Detectron2's, with clipping
    assert results.keys() == {"bbox", "segm"}


@pytest.fixture
def separated(shapes_root, registered, tmp_path):
    """`shapes_val_panoptic` in the form of Panoptic FPN, whose semantic segmentation is one class for all things."""
    known = MetadataCatalog.get("shapes_val_panoptic")
    folder = tmp_path / "stuff"
    folder.mkdir()
    for x in DatasetCatalog.get("shapes_val_panoptic"):
        ids = read_segment_ids(x["pan_seg_file_name"])
        labels = np.zeros(ids.shape, np.uint8)
        for segment in x["segments_info"]:
            labels[ids == segment["id"]] = max(segment["category_id"] - 3, 0)  # four things, then stuff
        name = x["pan_seg_file_name"].rpartition("/")[2]
        Image.fromarray(labels).save(folder / name)
    stuff = {key: value - 3 for key, value in known.stuff_dataset_id_to_contiguous_id.items()}
    metadata = {
        "thing_classes": known.thing_classes,
        "thing_dataset_id_to_contiguous_id": known.thing_dataset_id_to_contiguous_id,
        "stuff_classes": ["things", *known.stuff_classes[4:]],
        "stuff_dataset_id_to_contiguous_id": {0: 0, **stuff},
    }
    paths = (known.image_root, known.panoptic_root, known.panoptic_json, str(folder), known.json_file)
    register_coco_panoptic_separated("shapes_fpn", metadata, *paths)
    registered += ["shapes_fpn_separated", "shapes_fpn_stuffonly"]
    return "shapes_fpn_separated"


@pytest.mark.slow
def test_panoptic_fpn_trains_and_gives_pq(separated, tmp_path):
    settings = {
        "MODEL.META_ARCHITECTURE": "PanopticFPN",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "DATASETS.TRAIN": (separated,),
        "DATASETS.TEST": (separated,),
    }
    _, results = train(tmp_path, settings)
    assert results.keys() == {"bbox", "segm", "sem_seg", "panoptic_seg"}
