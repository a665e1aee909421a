"""Evaluators on predictions made from the ground truth, and the table of all numbers."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import Boxes, BoxMode, Instances

from detr.data.masks import rasterize
from detr.data.panoptic_mapper import read_segment_ids
from detr.errors import InputError
from detr.evaluation.evaluators import ThingsEvaluator, build_evaluator, check_evaluator, check_panopticapi
from detr.evaluation.panoptic import PanopticEvaluator
from detr.evaluation.results import results_table

PANOPTIC = {
    "DATASETS.TEST": "('shapes_val_panoptic',)",
    "MODEL.DETR.NUM_CLASSES": 7,
    "MODEL.MASK_ON": True,
    "MODEL.DETR.PANOPTIC.ENABLED": True,
}


def truth(panoptic_set="shapes_val_panoptic"):
    """(input, output) of every image, the output of a model that is always right."""
    metadata = MetadataCatalog.get(panoptic_set)
    annotated = load_coco_json(metadata.json_file, metadata.image_root)
    for x in annotated:
        objects = [obj for obj in x["annotations"] if not obj["iscrowd"]]
        for obj in objects:
            obj["category_id"] = metadata.thing_dataset_id_to_contiguous_id[obj["category_id"]]
        size = x["height"], x["width"]
        x["instances"] = instances = Instances(size)
        boxes = [BoxMode.convert(obj["bbox"], obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in objects]
        masks = [rasterize(obj["segmentation"], size, x["file_name"]) for obj in objects]
        instances.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.scores = torch.linspace(0.9, 0.5, len(objects))
        instances.pred_classes = torch.tensor([obj["category_id"] for obj in objects], dtype=torch.int64)
        instances.pred_masks = torch.from_numpy(np.array(masks, dtype=bool).reshape(-1, *size))
    instances_of = {x["image_id"]: x["instances"] for x in annotated}
    pairs = []
    for x in DatasetCatalog.get(panoptic_set):
        ids = read_segment_ids(x["pan_seg_file_name"])
        segments, panoptic = [], np.zeros(ids.shape, dtype=np.int32)
        for segment in x["segments_info"]:
            if not segment["iscrowd"]:
                segments.append({"id": len(segments) + 1, **{k: segment[k] for k in ("category_id", "isthing")}})
                panoptic[ids == segment["id"]] = len(segments)
        output = {"instances": instances_of[x["image_id"]], "panoptic_seg": (torch.from_numpy(panoptic), segments)}
        pairs.append((x, output))
    return pairs


def evaluate(evaluator, pairs):
    evaluator.reset()
    for x, output in pairs:
        evaluator.process([x], [output])
    return evaluator.evaluate()


@pytest.fixture
def panoptic_config(tiny_config, tmp_path, shapes_root):
    return lambda **settings: tiny_config({**PANOPTIC, "OUTPUT_DIR": tmp_path, **settings})


def test_the_ground_truth_has_ap_and_pq_100(panoptic_config):
    results = evaluate(build_evaluator(panoptic_config(), "shapes_val_panoptic"), truth())
    assert results.keys() == {"bbox", "segm", "panoptic_seg"}
    assert [results[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])
    assert results["bbox"]["AP-star"] == pytest.approx(100)
    assert "AP-sky" not in results["bbox"]
    assert results["panoptic_seg"] == pytest.approx(dict.fromkeys(results["panoptic_seg"], 100))


def test_mistakes_lower_the_numbers(panoptic_config):
    """Masks moved by 4 pixels, boxes left where they are, two things taken for each other, one stuff for another."""
    pairs = truth()
    for _, output in pairs:
        output["instances"].pred_masks = output["instances"].pred_masks.roll(4, -1)
        wrong = output["instances"].pred_classes
        output["instances"].pred_classes = torch.where(wrong == 3, 2, wrong)  # stars become triangles
        for segment in output["panoptic_seg"][1]:
            segment["category_id"] = {3: 2, 6: 5}.get(segment["category_id"], segment["category_id"])
    results = evaluate(build_evaluator(panoptic_config(), "shapes_val_panoptic"), pairs)
    assert results["bbox"]["AP-star"] == 0
    assert results["bbox"]["AP-disc"] == pytest.approx(100)
    assert 20 < results["segm"]["AP"] < results["bbox"]["AP"] - 10
    assert 30 < results["panoptic_seg"]["PQ_th"] < 90
    assert 30 < results["panoptic_seg"]["PQ_st"] < 90


def test_stuff_among_the_instances_is_ignored(panoptic_config):
    """A box DETR of stage 1 gives boxes of stuff too."""
    pairs = truth()
    for _, output in pairs:
        sky = output["instances"][:1]
        sky.pred_classes = torch.full((len(sky),), 4)
        output["instances"] = Instances.cat([sky, output["instances"]])
    config = panoptic_config(**{"MODEL.MASK_ON": False, "MODEL.DETR.PANOPTIC.ENABLED": False})
    results = evaluate(build_evaluator(config, "shapes_val_panoptic"), pairs)
    assert results.keys() == {"bbox"}
    assert results["bbox"]["AP"] == pytest.approx(100)


def test_masks_are_expected_where_they_are_on(tiny_config, tmp_path, shapes_root):
    """Nothing found is no box AP and no mask AP: the second must not go missing."""
    pairs = [(x, {"instances": output["instances"][:0]}) for x, output in truth()]
    evaluator = build_evaluator(tiny_config({"MODEL.MASK_ON": True, "OUTPUT_DIR": tmp_path}), "shapes_val")
    assert evaluate(evaluator, pairs).keys() == {"bbox", "segm"}


def test_a_panoptic_set_has_all_its_evaluators(panoptic_config):
    evaluators = build_evaluator(panoptic_config(), "shapes_val_panoptic")
    assert isinstance(evaluators, DatasetEvaluators)
    assert [type(x) for x in evaluators._evaluators] == [ThingsEvaluator, PanopticEvaluator]
    boxes = build_evaluator(panoptic_config(**{"MODEL.DETR.PANOPTIC.ENABLED": False}), "shapes_val_panoptic")
    assert type(boxes) is ThingsEvaluator


@pytest.fixture
def other_sets():
    """Names of a panoptic set without instance annotations, and of one for semantic segmentation."""
    panoptic = MetadataCatalog.get("shapes_val_panoptic").as_dict()
    MetadataCatalog.get("without_instances").set(**{**panoptic, "name": "without_instances", "json_file": None})
    MetadataCatalog.get("semantic").set(evaluator_type="sem_seg")
    yield "without_instances", "semantic"
    MetadataCatalog.remove("without_instances")
    MetadataCatalog.remove("semantic")


def test_sets_without_instances(panoptic_config, other_sets):
    without_instances, semantic = other_sets
    assert type(build_evaluator(panoptic_config(), without_instances)) is PanopticEvaluator
    with pytest.raises(InputError, match="no evaluator for the data set without_instances"):
        build_evaluator(panoptic_config(**{"MODEL.DETR.PANOPTIC.ENABLED": False}), without_instances)
    with pytest.raises(InputError, match="no evaluator for the data set semantic of type 'sem_seg'"):
        build_evaluator(panoptic_config(), semantic)


def test_the_ground_truth_of_coco_has_ap_and_pq_100(panoptic_config, coco_panoptic):
    """133 names are in thing_classes, and 80 categories in the instance annotations."""
    results = evaluate(build_evaluator(panoptic_config(), coco_panoptic), truth(coco_panoptic))
    assert [results[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])
    assert len([key for key in results["bbox"] if key.startswith("AP-")]) == 80
    assert results["panoptic_seg"] == pytest.approx(dict.fromkeys(results["panoptic_seg"], 100))


@pytest.mark.parametrize("area", [None, "384", 0, "missing"])
def test_pq_counts_the_pixels_of_segments_without_an_area(panoptic_config, shapes_root, tmp_path, area):
    metadata = MetadataCatalog.get("shapes_val_panoptic").as_dict()
    content = json.loads(Path(metadata["panoptic_json"]).read_text())
    for x in content["annotations"]:
        for segment in x["segments_info"]:
            segment["area"] = area
            if area == "missing":
                del segment["area"]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    changes = {"name": "without_areas", "json_file": None, "panoptic_json": str(tmp_path / "panoptic.json")}
    MetadataCatalog.get("without_areas").set(**{**metadata, **changes})
    try:
        results = evaluate(build_evaluator(panoptic_config(), "without_areas"), truth())
    finally:
        MetadataCatalog.remove("without_areas")
    assert results["panoptic_seg"] == pytest.approx(dict.fromkeys(results["panoptic_seg"], 100))


def test_an_evaluator_of_another_kind_is_found_with_the_data_set(panoptic_config, other_sets):
    check_evaluator(panoptic_config(), "shapes_val_panoptic")
    check_evaluator(panoptic_config(), "shapes_val")
    with pytest.raises(InputError, match="no evaluator for the data set semantic of type 'sem_seg'"):
        check_evaluator(panoptic_config(), other_sets[1])
    vars(MetadataCatalog.get("semantic"))["evaluator_type"] = "pascal_voc"
    with pytest.raises(InputError, match="semantic of type 'pascal_voc' has no dirname in its metadata"):
        check_evaluator(panoptic_config(), "semantic")


def test_a_missing_panopticapi_is_reported_with_the_remedy(monkeypatch):
    check_panopticapi()
    monkeypatch.setitem(sys.modules, "panopticapi", None)  # as Python marks a module that cannot be imported
    with pytest.raises(InputError, match=r"pip install --no-deps panopticapi-lite==0\.2\.0"):
        check_panopticapi()


def test_one_table_holds_all_numbers():
    results = {
        "a": {"bbox": {"AP": 41.234, "AP50": 60.0, "AP-person": 50.0}, "panoptic_seg": {"PQ": 43.4}},
        "b": {"bbox": {"AP": float("nan")}, "sem_seg": {"mIoU": 5.0}},
    }
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in results_table(results).splitlines()]
    assert cells[0] == ["", "a", "b"]
    assert cells[2:] == [
        ["box AP", "41.23", "nan"],
        ["box AP50", "60.00", ""],
        ["PQ", "43.40", ""],
        ["sem_seg mIoU", "", "5.00"],
    ]
