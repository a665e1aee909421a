"""PQ of the same outputs, by our evaluation and by the original's own pipeline, on shapes and on real images."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from torch.nn import functional as F

from detr.data.panoptic_mapper import read_segment_ids
from detr.modeling.panoptic import panoptic_queries, panoptic_segmentation
from tests.parity.oracle import load_oracle


def outputs_like(ids: np.ndarray, segments: list[dict[str, Any]], num_classes: int, seed: int) -> Any:
    """Logits (Q, K + 1) and mask logits (Q, h, w) of a model that is mostly right: noise, doubles, wrong classes."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.stack([torch.from_numpy(ids == segment["id"]).float() for segment in segments])
    size = [(side + 3) // 4 for side in ids.shape]
    small = F.interpolate(masks[:, None], size=size, mode="area")[:, 0] * 8 - 4
    classes = torch.tensor([segment["category_id"] for segment in segments])
    # Each segment twice, the second time as a competitor, and every third of these of another class.
    small = torch.cat([small, small.roll(5, dims=2) - 0.5])
    doubled = torch.where(torch.arange(len(classes)) % 3 == 0, (classes + 1) % num_classes, classes)
    classes = torch.cat([classes, doubled])
    small = small + torch.randn(small.shape, generator=generator)
    logits = torch.randn(len(classes), num_classes + 1, generator=generator)
    logits[torch.arange(len(classes)), classes] = torch.where(
        torch.rand(len(classes), generator=generator) > 0.2, 9.0, 3.0
    )
    return logits, small


def both_qualities(dicts: list[dict[str, Any]], name: str, folder: Any) -> list[dict[str, float]]:
    """PQ, SQ and RQ in percent, of all classes, things and stuff: ours, theirs."""
    metadata = MetadataCatalog.get(name)
    things = metadata.thing_dataset_id_to_contiguous_id
    category_of = {
        index: category for category, index in {**things, **metadata.stuff_dataset_id_to_contiguous_id}.items()
    }
    is_thing = torch.tensor([index in things.values() for index in range(len(category_of))])
    rows = max(category_of.values()) + 2  # the original's head counts category ids, and no-object comes last
    oracle = load_oracle()
    postprocess = oracle.PostProcessPanoptic({category: category in things for category in range(rows)}, threshold=0.85)
    theirs = oracle.PanopticEvaluator(metadata.panoptic_json, metadata.panoptic_root, str(folder / "theirs"))
    ours = COCOPanopticEvaluator(name, str(folder))
    ours.reset()
    for seed, x in enumerate(dicts):
        ids = read_segment_ids(x["pan_seg_file_name"])
        logits, masks = outputs_like(ids, x["segments_info"], len(category_of), seed)
        queries, labels, scores = panoptic_queries(logits, 0.85)
        sizes = {"padded_size": ids.shape, "image_size": ids.shape, "size": ids.shape}
        settings = {"is_thing": is_thing, "min_area": 4, "stuff_merge": "original"}
        found = panoptic_segmentation(masks[queries], labels, scores, **sizes, **settings)
        ours.process([x], [{"panoptic_seg": found}])

        expanded = logits.new_full((len(logits), rows), -1e4)
        expanded[:, [*(category_of[index] for index in range(len(category_of))), rows - 1]] = logits
        outputs = {
            "pred_logits": expanded[None],
            "pred_masks": masks[None],
            "pred_boxes": torch.rand(1, len(logits), 4),
        }
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TypedStorage is deprecated")
            (result,) = postprocess(outputs, torch.tensor([ids.shape]), torch.tensor([ids.shape]))
        file_name = f"{x['image_id']:012d}.png"
        theirs.update([{**result, "image_id": x["image_id"], "file_name": file_name}])
    theirs.synchronize_between_processes()
    expected = theirs.summarize()
    quality = ours.evaluate()["panoptic_seg"]
    kinds = (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
    return [
        {
            f"{key.upper()}{suffix}": quality[f"{key.upper()}{suffix}"]
            for _, suffix in kinds
            for key in ("pq", "sq", "rq")
        },
        {f"{key.upper()}{suffix}": 100 * expected[kind][key] for kind, suffix in kinds for key in ("pq", "sq", "rq")},
    ]


def test_on_shapes(shapes_root, tmp_path):
    # The truth that both read holds all 16 images: what is left out of the predictions counts as missed.
    dicts = DatasetCatalog.get("shapes_val_panoptic")
    found, expected = both_qualities(dicts, "shapes_val_panoptic", tmp_path)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 20 < found["PQ"] < 90


def test_on_real_images(coco_panoptic, tmp_path):
    found, expected = both_qualities(DatasetCatalog.get(coco_panoptic), coco_panoptic, tmp_path)
    assert found == pytest.approx(expected, abs=1e-9)
    assert 20 < found["PQ"] < 90
