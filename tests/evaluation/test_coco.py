"""hotcoco against pycocotools: arrays, evaluators, and what is left to the second."""

import copy
import json
import logging
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.structures import Boxes, Instances

from detr.engine.data_checks import check_test_sets
from detr.errors import InputError
from detr.evaluation.coco import FastCOCOEvaluator, choose_backend, count
from detr.evaluation.evaluators import ThingsEvaluator, build_evaluator
from tests.evaluation.random_coco import HEIGHT, WIDTH, expected, random_case
from tests.evaluation.test_evaluators import PANOPTIC, evaluate, truth


def assert_same(counted, reference):
    assert np.shape(counted.stats) == (12,)
    np.testing.assert_allclose(counted.stats, reference.stats, rtol=0, atol=1e-9)
    for name in ("precision", "recall", "scores"):
        assert counted.eval[name].shape == reference.eval[name].shape
        np.testing.assert_allclose(counted.eval[name], reference.eval[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_those_of_pycocotools(task, seed, capfd):
    dataset, results = random_case(seed)
    before = copy.deepcopy((dataset, results))
    counted = count(dataset, results, task)
    assert capfd.readouterr() == ("", "")
    assert (dataset, results) == before
    reference = expected(dataset, results, task)
    assert_same(counted, reference)
    assert 0.02 < counted.stats[0] < 0.9  # the case has hits and misses
    assert (reference.eval["precision"][:, :, [0, 1, 2, 3]] > 0).any(axis=(0, 1, 3, 4)).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_part_of_the_images_counts(task):
    dataset, results = random_case(4)
    ids = [17, 3, 3, 8, 1, 14, 999]
    assert_same(count(dataset, results, task, image_ids=ids), expected(dataset, results, task, image_ids=ids))


@pytest.mark.parametrize("limit", [2, 7, 300])
def test_another_number_of_detections(limit):
    dataset, results = random_case(5)
    max_dets = [1, 10, limit]
    reference = expected(dataset, results, "bbox", max_dets, evaluation=COCOevalMaxDets)
    assert_same(count(dataset, results, "bbox", max_dets), reference)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_one_detection_and_no_object(task):
    dataset, results = random_case(6)
    dataset["annotations"] = []
    counted = count(dataset, results[:1], task)
    assert_same(counted, expected(dataset, results[:1], task))
    assert set(counted.stats) == {-1}


def change(annotations=None, results=None, **lists):
    """A fault: keys of the first annotation or result set to other values, or whole lists changed."""

    def apply(dataset, found):
        dataset["annotations"][0].update(annotations or {})
        found[0].update(results or {})
        for name, function in lists.items():
            dataset[name] = function(dataset[name])

    return apply


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change(annotations={"id": 0}), "id 0: number them from 1"),
        (change(annotations={"id": 8}), "ids of annotations are missing or occur twice"),
        (change(annotations={"id": None}), "ids of annotations are missing"),
        (change(annotations={"id": "5"}), "'5'"),
        (change(annotations={"area": None}), "annotation 5 lacks one of .*area"),
        (change(annotations={"iscrowd": None}), "annotation 5 lacks one of .*iscrowd"),
        (change(annotations={"segmentation": []}), "annotation 5 has no mask"),
        (change(annotations={"segmentation": [[1, 2, 3, 4]]}), "annotation 5 has no mask"),
        (change(annotations={"segmentation": None}), "annotation 5 has no mask"),
        (change(results={"score": float("nan")}), "not finite"),
        (change(results={"bbox": [0, 0, float("nan"), 1]}), "not finite"),
        (change(results={"image_id": 99}), "image_id of a prediction is not in the ground truth"),
        (change(results={"category_id": 4}), "category_id of a prediction is not in the ground truth"),
        (change(categories=lambda x: [*x, x[0]]), "ids of categories are missing or occur twice"),
        (change(images=lambda x: []), "no images"),
        (change(images=lambda x: [{"id": image["id"]} for image in x]), "height"),
    ],
)
def test_what_would_be_counted_otherwise_is_refused(fault, message, capfd):
    dataset, results = random_case(7)
    fault(dataset, results)
    with pytest.raises(ValueError, match=message):
        count(dataset, results, "segm")
    assert capfd.readouterr().err == ""


def test_predictions_without_masks_have_no_mask_ap():
    dataset, results = random_case(7)
    del results[0]["segmentation"]
    with pytest.raises(ValueError, match="predictions lack masks"):
        count(dataset, results, "segm")


def mistaken(pairs):
    """Predictions that are partly right: moved masks and boxes, other classes, several of the same score."""
    generator = torch.Generator().manual_seed(0)
    for _, output in pairs:
        instances = output["instances"]
        shift = 4 * torch.randn((len(instances), 4), generator=generator)
        instances.pred_boxes = Boxes(instances.pred_boxes.tensor + shift)
        instances.pred_masks = instances.pred_masks.roll(2, -1)
        instances.scores = torch.rand(len(instances), generator=generator).mul(4).ceil() / 4
        if len(instances):
            instances.pred_classes[0] = 1
    return pairs


def results_of(backend, make, pairs, folder):
    """(results, the bytes of coco_instances_results.json)"""
    results = evaluate(make(backend, folder), pairs)
    return results, (folder / "inference" / "coco_instances_results.json").read_bytes()


@pytest.fixture(params=["instances", "things of a panoptic set", "coco"])
def both(request, tiny_config, tmp_path, shapes_root):
    """(evaluator of a back end, predictions): a new evaluator for every call, as it is built from a config."""
    name = {"instances": "shapes_val", "coco": ""}.get(request.param, "shapes_val_panoptic")
    panoptic = {} if name == "shapes_val" else PANOPTIC
    name = name or request.getfixturevalue("coco_panoptic")

    def make(backend, folder):
        # The maps are compared elsewhere: without them, AP alone is left.
        settings = {**panoptic, "MODEL.MASK_ON": True, "MODEL.DETR.PANOPTIC.ENABLED": False}
        config = tiny_config({**settings, "TEST.COCO_BACKEND": backend, "OUTPUT_DIR": folder})
        return build_evaluator(config, name)

    return make, mistaken(truth(name if panoptic else "shapes_val_panoptic"))


def test_evaluators_give_the_same_with_both(both, tmp_path, caplog, capfd):
    make, pairs = both
    with caplog.at_level(logging.INFO):
        fast, fast_file = results_of("hotcoco", make, pairs, tmp_path / "hotcoco")
        assert "by hotcoco 1." in caplog.text
        assert "pycocotools" not in caplog.text
        assert "Per-category segm AP" in caplog.text
        assert capfd.readouterr().out == ""
        slow, slow_file = results_of("pycocotools", make, pairs, tmp_path / "pycocotools")
        assert "with pycocotools" in caplog.text
    assert fast.keys() == slow.keys() == {"bbox", "segm"}
    for task, metrics in slow.items():
        assert list(fast[task]) == list(metrics)
        assert fast[task] == pytest.approx(metrics, rel=0, abs=1e-9, nan_ok=True)
        assert any(key.startswith("AP-") for key in metrics)
        assert 5 < metrics["AP"] < 95
    assert fast_file == slow_file
    assert len(json.loads(fast_file)) == sum(len(output["instances"]) for _, output in pairs)


def test_nothing_found_is_no_ap(both, tmp_path):
    make, pairs = both
    nothing = [(x, {"instances": output["instances"][:0]}) for x, output in pairs]
    results, file = results_of("hotcoco", make, nothing, tmp_path)
    assert file == b"[]"
    assert all(np.isnan(results[task]["AP"]) for task in ("bbox", "segm"))


@pytest.fixture
def registered(request, tmp_path):
    """The name of a registered set whose first annotation has the id `request.param`, and predictions for it."""
    dataset, results = random_case(8)
    dataset["annotations"][0]["id"] = request.param
    (tmp_path / "truth.json").write_text(json.dumps(dataset))
    classes = {2: 0, 3: 1, 7: 2, 9: 3}
    name = "random_case"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "truth.json"),
        thing_classes=["a", "b", "c", "d"],
        thing_dataset_id_to_contiguous_id=classes,
    )
    pairs = []
    for image in dataset["images"]:
        mine = [result for result in results if result["image_id"] == image["id"]]
        instances = Instances((HEIGHT, WIDTH))
        boxes = torch.tensor([result["bbox"] for result in mine]).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        instances.scores = torch.tensor([result["score"] for result in mine])
        instances.pred_classes = torch.tensor([classes[result["category_id"]] for result in mine], dtype=torch.int64)
        pairs.append(({"image_id": image["id"]}, {"instances": instances}))
    yield name, pairs
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("registered", [0], indirect=True)
def test_an_annotation_with_the_id_0_counts_like_others(registered, tmp_path, caplog):
    """pycocotools takes a match with it for none."""
    name, pairs = registered
    options = {"tasks": ("bbox",), "output_dir": str(tmp_path / "inference")}
    results = [evaluate(FastCOCOEvaluator(name, backend=x, **options), pairs) for x in ("hotcoco", "pycocotools")]
    assert "hotcoco cannot" not in caplog.text
    truth = json.loads((tmp_path / "truth.json").read_text())
    truth["annotations"][0]["id"] = 10**6
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    reference = evaluate(COCOEvaluator(name, **options), pairs)
    for result in results:
        assert result["bbox"] == pytest.approx(reference["bbox"], rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("registered", [5], indirect=True)
def test_what_hotcoco_cannot_count_pycocotools_does(registered, tmp_path, caplog):
    name, pairs = registered
    pairs[-1][1]["instances"].scores[0] = float("inf")
    options = {"tasks": ("bbox",), "output_dir": str(tmp_path / "inference")}
    results = evaluate(FastCOCOEvaluator(name, backend="hotcoco", **options), pairs)
    assert "with pycocotools, for hotcoco cannot: predictions have scores or boxes that are not finite" in caplog.text
    reference = evaluate(COCOEvaluator(name, **options), pairs)
    assert results["bbox"] == pytest.approx(reference["bbox"], rel=0, abs=0, nan_ok=True)
    assert results["bbox"]["AP"] > 5


@pytest.mark.parametrize("registered", [5], indirect=True)
@pytest.mark.parametrize("options", [{"max_dets_per_image": 7}, {"max_dets_per_image": 300}, {"tasks": ("bbox",)}])
def test_an_evaluators_own_options(registered, options, caplog):
    """Tasks may come from the predictions, and some images alone may count."""
    name, pairs = registered
    found = []
    for evaluator in (FastCOCOEvaluator(name, backend="hotcoco", **options), COCOEvaluator(name, **options)):
        evaluator.reset()
        evaluator.process(*zip(*pairs, strict=True))
        found.append(evaluator.evaluate(img_ids=list(range(3, 20)))["bbox"])
    assert "with pycocotools" not in caplog.text
    assert found[0] == pytest.approx(found[1], rel=0, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("registered", [5], indirect=True)
def test_a_class_that_the_data_set_lacks_is_detectron2s_error(registered, tmp_path):
    name, pairs = registered
    pairs[-1][1]["instances"].pred_classes[0] = 4
    with pytest.raises(AssertionError, match="class=4"):
        evaluate(FastCOCOEvaluator(name, output_dir=str(tmp_path)), pairs)


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
def test_masks_of_another_model_are_compared(shapes_root, backend):
    """Which has no tasks: Detectron2 looks for masks in the predictions."""
    results = evaluate(FastCOCOEvaluator("shapes_val", backend=backend), truth())
    assert [results[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])


@pytest.mark.parametrize("registered", [5], indirect=True)
def test_an_image_without_an_id_is_named(registered):
    name, pairs = registered
    evaluator = FastCOCOEvaluator(name, tasks=("bbox",))
    evaluator.reset()
    with pytest.raises(InputError, match=f"a.jpg of the data set {name} has no image_id"):
        evaluator.process([{"file_name": "a.jpg"}], [pairs[0][1]])


@pytest.fixture
def without_hotcoco(monkeypatch):
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # as Python marks a module that cannot be imported


def test_auto_takes_what_there_is(monkeypatch):
    assert [choose_backend(name) for name in ("auto", "hotcoco", "pycocotools")] == [
        "hotcoco",
        "hotcoco",
        "pycocotools",
    ]
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    assert [choose_backend(name) for name in ("auto", "pycocotools")] == ["pycocotools"] * 2


def test_without_hotcoco_the_results_are_the_same(both, tmp_path, monkeypatch):
    make, pairs = both
    fast = results_of("auto", make, pairs, tmp_path / "with")
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    evaluator = make("auto", tmp_path / "without")
    assert isinstance(evaluator, FastCOCOEvaluator)
    assert evaluator.backend == "pycocotools"
    slow = results_of("auto", make, pairs, tmp_path / "without")
    assert fast[0]["segm"] == pytest.approx(slow[0]["segm"], rel=0, abs=1e-9, nan_ok=True)
    assert fast[1] == slow[1]


@pytest.mark.usefixtures("without_hotcoco")
def test_a_missing_hotcoco_is_reported_before_the_data_are_read(tiny_config):
    config = tiny_config({"TEST.COCO_BACKEND": "hotcoco", "DATASETS.TEST": "('not_registered',)"})
    with pytest.raises(
        InputError, match=r"^TEST\.COCO_BACKEND is hotcoco, .*: pip install 'hotcoco>=1\.3,<2', or .*auto$"
    ):
        check_test_sets(config)


def test_an_unknown_back_end_is_reported_before_the_data_are_read(tiny_config):
    config = tiny_config({"TEST.COCO_BACKEND": "hotcocoa", "DATASETS.TEST": "('not_registered',)"})
    message = r"^TEST\.COCO_BACKEND is 'hotcocoa': set it to auto, hotcoco or pycocotools$"
    with pytest.raises(InputError, match=message):
        check_test_sets(config)


def test_panoptic_things_take_the_back_end_too(tiny_config, shapes_root, tmp_path):
    settings = {**PANOPTIC, "TEST.COCO_BACKEND": "pycocotools", "OUTPUT_DIR": tmp_path}
    things, _ = build_evaluator(tiny_config(settings), "shapes_val_panoptic")._evaluators
    assert type(things) is ThingsEvaluator
    assert things.backend == "pycocotools"
