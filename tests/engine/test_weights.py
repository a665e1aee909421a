"""Weights from elsewhere, evaluated by `train_net.py` as they are."""

import argparse
import json

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net
from detr.checkpoint.formats import to_detectron2
from tests.checkpoint.samples import as_wrapper, small_original
from tests.conftest import as_opts
from tests.engine.test_defaults import WRAPPER_YAML

WRAPPER_SEGMENTATION_YAML = WRAPPER_YAML.replace("MASK_ON: False", "MASK_ON: True").replace(
    "  DETR:\n", '  DETR:\n    FROZEN_WEIGHTS: ""\n'
)
# The sizes of the test's model and data; the YAML itself stays as it is.
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.DETR.HIDDEN_DIM": 128,  # the least that the mask head of the original takes
    "MODEL.DETR.DIM_FEEDFORWARD": 64,
    "MODEL.DETR.ENC_LAYERS": 1,
    "MODEL.DETR.DEC_LAYERS": 1,
    "MODEL.DETR.NUM_CLASSES": 4,
    "DATASETS.TEST": "('shapes_val',)",
    "INPUT.MIN_SIZE_TEST": 96,
    "DATALOADER.NUM_WORKERS": 0,
}


def evaluate(yaml, weights, folder):
    path = folder / "wrapper.yaml"
    path.write_text(yaml)
    opts = as_opts({**SMALL, "MODEL.WEIGHTS": weights, "OUTPUT_DIR": folder / "output"})
    results = train_net.main(default_argument_parser().parse_args(["--config-file", str(path), "--eval-only", *opts]))
    found = json.loads((folder / "output" / "inference" / "coco_instances_results.json").read_text())
    return results, found


@pytest.mark.slow
@pytest.mark.parametrize("masks", [False, True], ids=["detection", "segmentation"])
def test_a_wrapper_yaml_and_a_wrapper_checkpoint_run_unchanged(masks, shapes_root, tmp_path):
    state = small_original(num_classes=4, masks=masks, hidden_dim=128, num_queries=100)
    yaml = WRAPPER_SEGMENTATION_YAML if masks else WRAPPER_YAML
    contents = {
        "wrapper": {"model": as_wrapper(state)},
        # A training checkpoint of the authors' code, with the options of its command line.
        "original": {"model": state, "args": argparse.Namespace(dilation=False), "epoch": 1, "optimizer": {}},
        "detectron2": {"model": to_detectron2(state).state},
    }
    found = {}
    for name, content in contents.items():
        folder = tmp_path / name
        folder.mkdir()
        torch.save(content, folder / "weights.pth")
        results, found[name] = evaluate(yaml, folder / "weights.pth", folder)
        assert results.keys() == ({"bbox", "segm"} if masks else {"bbox"})
    assert len(found["wrapper"]) == 16 * 100
    assert ("segmentation" in found["wrapper"][0]) == masks
    assert found["wrapper"] == found["original"] == found["detectron2"]
