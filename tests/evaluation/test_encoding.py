"""Predictions that are encoded in threads are those of Detectron2's evaluators, in the order of the data set."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator
from detectron2.structures import Boxes, Instances
from PIL import Image

from detr.evaluation.coco import FastCOCOEvaluator
from detr.evaluation.encoding import DATASET_INDEX
from detr.evaluation.panoptic import PanopticEvaluator
from tests.evaluation.test_evaluators import truth

NAME = "shapes_val_panoptic"
BACKENDS = ["hotcoco", "pycocotools"]


def detections(size, seed):
    """Instances with masks of many kinds: of no pixel, of all, of every second one, blobs; of a seed 0 none at all."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    masks = [np.zeros(size, dtype=bool), np.ones(size, dtype=bool), (rows + columns) % 2 == 0, rows % 2 == 1]
    masks += [(rows - y) ** 2 + (columns - x) ** 2 < r**2 for y, x, r in random.uniform(3, 100, (6, 3))]
    number = len(masks) if seed else 0
    corners = random.uniform(0, 50, (number, 2))
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(np.hstack([corners, corners + random.uniform(1, 70, (number, 2))])).float()),
        scores=torch.from_numpy(random.random(number)).float(),
        pred_classes=torch.from_numpy(random.integers(0, 4, number)),
        pred_masks=torch.from_numpy(np.array(masks[:number], dtype=bool).reshape(-1, *size)),
    )


def shifted(pairs):
    """The truth's maps with mistakes: every map is moved, one segment has another class and one is void."""
    found = []
    for x, output in pairs:
        ids, segments = output["panoptic_seg"]
        ids = ids.roll((5, 9), (0, 1))
        ids[ids == len(segments)] = 0
        segments = [dict(segment) for segment in segments[:-1]]
        segments[0]["category_id"] = (segments[0]["category_id"] + 1) % (4 if segments[0]["isthing"] else 7)
        segments[0]["isthing"] = segments[0]["category_id"] < 4
        present = set(ids.unique().tolist())
        found.append((x, {"panoptic_seg": (ids, [segment for segment in segments if segment["id"] in present])}))
    return found


def run(evaluator, pairs, order=None):
    """The result of an evaluation of two images at a time; order: in which they come, numbered as a loader does."""
    evaluator.reset()
    numbered = [({**x, DATASET_INDEX: index}, output) for index, (x, output) in enumerate(pairs)]
    numbered = pairs if order is None else [numbered[index] for index in order]
    for i in range(0, len(numbered), 2):
        evaluator.process(*(list(part) for part in zip(*numbered[i : i + 2], strict=True)))
    return evaluator.evaluate()


@pytest.fixture
def pairs(shapes_root):
    return truth()


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_are_detectron2s(backend, pairs, tmp_path):
    found = [(x, {"instances": detections((128, 128), seed)}) for seed, (x, _) in enumerate(pairs)]
    tasks, order = ("bbox", "segm"), [*range(1, len(pairs), 2), *range(0, len(pairs), 2)]
    expected = run(COCOEvaluator("shapes_val", tasks=tasks, output_dir=str(tmp_path / "d2")), found)
    evaluator = FastCOCOEvaluator("shapes_val", tasks=tasks, output_dir=str(tmp_path / "ours"), backend=backend)
    results = run(evaluator, found, order)
    for task in tasks:
        assert results[task] == pytest.approx(expected[task], nan_ok=True)
    ours, theirs = ((tmp_path / x / "coco_instances_results.json").read_text() for x in ("ours", "d2"))
    assert len(json.loads(ours)) == 10 * (len(pairs) - 1)
    assert ours == theirs
    ours, theirs = (torch.load(tmp_path / x / "instances_predictions.pth") for x in ("ours", "d2"))
    assert [x["image_id"] for x in ours] == [x["image_id"] for x in theirs] == [x["image_id"] for x, _ in pairs]


@pytest.mark.parametrize("backend", BACKENDS)
def test_maps_and_panoptic_quality_are_detectron2s(backend, pairs, tmp_path):
    order = list(reversed(range(len(pairs))))
    theirs = COCOPanopticEvaluator(NAME, str(tmp_path / "d2"))
    expected = run(theirs, shifted(pairs))["panoptic_seg"]
    ours = PanopticEvaluator(NAME, str(tmp_path / "ours"), backend)
    found = run(ours, shifted(pairs), order)["panoptic_seg"]
    assert 1 < expected["PQ"] < 99
    assert found == pytest.approx(expected, abs=1e-9)
    assert list(found) == list(expected)
    files = [(tmp_path / x / "predictions.json").read_text() for x in ("ours", "d2")]
    assert files[0] == files[1]


def test_a_png_holds_the_ids_of_its_map(pairs, tmp_path):
    evaluator = PanopticEvaluator(NAME, str(tmp_path))
    evaluator.reset()
    maps = [output["panoptic_seg"][0] * 70_001 for _, output in pairs]  # ids of three bytes
    for (x, _), ids in zip(pairs, maps, strict=True):
        evaluator.process([x], [{"panoptic_seg": (ids, [])}])
    evaluator.collect()
    for prediction, ids in zip(evaluator._predictions, maps, strict=True):
        colors = np.array(Image.open(io.BytesIO(prediction["png_string"]))).astype(np.int64)
        assert (colors @ [1, 256, 256**2] == ids.numpy()).all()


def test_the_outputs_stay_as_they_are(pairs, tmp_path):
    """A user's evaluator beside it may use them."""
    evaluator = PanopticEvaluator(NAME, str(tmp_path))
    before = json.dumps([output["panoptic_seg"][1] for _, output in pairs])
    run(evaluator, pairs)
    assert json.dumps([output["panoptic_seg"][1] for _, output in pairs]) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_in_a_thread_ends_the_evaluation(backend, pairs, tmp_path):
    evaluator = PanopticEvaluator(NAME, str(tmp_path), backend)
    x, output = pairs[0]
    wrong = [{"id": 1, "category_id": 99, "isthing": True}]
    with pytest.raises(KeyError, match="99"):
        run(evaluator, [(x, {"panoptic_seg": (output["panoptic_seg"][0], wrong)}), *pairs[1:]])


def test_an_image_without_a_prediction_is_an_error(pairs, tmp_path):
    with pytest.raises(ValueError, match=str(pairs[-1][0]["image_id"])):
        run(PanopticEvaluator(NAME, str(tmp_path), "hotcoco"), pairs[:-1])


def test_a_set_without_stuff_has_no_quality_of_stuff(pairs, tmp_path):
    """panopticapi divides by zero."""
    evaluator = PanopticEvaluator(NAME, str(tmp_path), "hotcoco")
    content = json.loads(Path(evaluator._metadata.panoptic_json).read_text())
    stuff = {x["id"] for x in content["categories"] if not x["isthing"]}
    for annotation in content["annotations"]:
        annotation["segments_info"] = [x for x in annotation["segments_info"] if x["category_id"] not in stuff]
    path = tmp_path / "things.json"
    path.write_text(json.dumps(content))
    evaluator._metadata = type(evaluator._metadata)(**{**evaluator._metadata.as_dict(), "panoptic_json": str(path)})
    things = []
    for x, output in pairs:
        ids, segments = output["panoptic_seg"]
        segments = [segment for segment in segments if segment["isthing"]]
        ids = torch.where(torch.isin(ids, torch.tensor([segment["id"] for segment in segments])), ids, 0)
        things.append((x, {"panoptic_seg": (ids, segments)}))
    results = run(evaluator, things)["panoptic_seg"]
    assert results["PQ"] == results["PQ_th"] == pytest.approx(100)
    assert np.isnan(results["PQ_st"])
