"""Boxes, scores and classes at output size equal the original's."""

import pytest
import torch

from detr.modeling.postprocessing import box_instances
from tests.parity.oracle import load_oracle, run_original
from tests.parity.pairs import PADDED, image_batch, make_pair, return_intermediate


@pytest.mark.slow
def test_boxes_scores_and_classes():
    pair = make_pair("detr_R_50")
    with torch.no_grad():
        outputs = run_original(pair.original, image_batch(PADDED))
    logits, boxes = (x[-1].float() for x in return_intermediate(outputs))
    sizes = torch.tensor([[427, 640], [1080, 333]])
    expected = load_oracle().PostProcess()({"pred_logits": logits, "pred_boxes": boxes}, sizes)
    for image, (height, width) in enumerate(sizes.tolist()):
        found = box_instances(logits[image], boxes[image], (height, width))
        assert len(found) == 100
        assert torch.equal(found.pred_boxes.tensor, expected[image]["boxes"])
        assert torch.equal(found.scores, expected[image]["scores"])
        assert torch.equal(found.pred_classes, expected[image]["labels"])
