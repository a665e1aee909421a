"""Odd but legal ground truth: perfect detections have AP 100, with both packages that count."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, BoxMode, Instances

from detr.data.ground_truth import load_truth, warn_of_other_objects
from detr.data.loading import load_dataset
from detr.data.masks import rasterize
from detr.errors import InputError
from detr.evaluation.coco import FastCOCOEvaluator

SQUARE = [[4, 4, 12, 4, 12, 12, 4, 12]]


def content():
    """Four images of 32 x 24 pixels, as the fixture ``images`` writes them, with two objects each."""
    annotations = []
    for image in range(4):
        for k, box in enumerate(([4, 4, 8, 8], [14, 6, 12.5, 15.25])):
            x, y, width, height = box
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation = {"id": 2 * image + k + 1, "image_id": image, "category_id": k + 1, "bbox": box}
            annotations.append({**annotation, "area": width * height, "iscrowd": 0, "segmentation": [polygon]})
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 32, "height": 24} for i in range(4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }


def every(kind, **keys):
    """Sets keys of all entries; a value may be a function of the entry."""

    def apply(value):
        for entry in value[kind]:
            entry.update({key: x(entry) if callable(x) else x for key, x in keys.items()})

    return apply


def without(kind, *keys):
    def apply(value):
        for entry in value[kind]:
            for key in keys:
                entry.pop(key)

    return apply


def first(**keys):
    return lambda value: value["annotations"][0].update(keys)


ODD = {
    "as it should be": lambda value: None,
    "an annotation with the id 0": first(id=0),
    "no ids of annotations": without("annotations", "id"),
    "no area": without("annotations", "area"),
    "no iscrowd": without("annotations", "iscrowd"),
    "iscrowd null": every("annotations", iscrowd=None),
    "iscrowd as text": every("annotations", iscrowd="0"),
    "iscrowd false": every("annotations", iscrowd=False),
    "area as text": every("annotations", area=lambda x: str(x["area"])),
    "area null": every("annotations", area=None),
    "area negative": every("annotations", area=-1),
    "area too large": every("annotations", area=1e12),
    "area not a number": every("annotations", area=float("nan")),
    "date_captured 0, as CVAT writes it": every("images", date_captured=0),
    "more keys": every("images", license=None, flickr_url=0, coco_url=[], extra={"a": None}),
    "info and licenses null": lambda value: value.update(info=None, licenses=None),
    "no width and height": without("images", "width", "height"),
    "width as text": every("images", width="32"),
    "ids of images as text": lambda value: (
        every("images", id=lambda x: f"image {x['id']}")(value),
        every("annotations", image_id=lambda x: f"image {x['image_id']}")(value),
    ),
    "ids of categories as text": lambda value: (
        every("categories", id=lambda x: f"class {x['id']}")(value),
        every("annotations", category_id=lambda x: f"class {x['category_id']}")(value),
    ),
    "large ids": lambda value: (
        every("images", id=lambda x: 2**62 + x["id"])(value),
        every("annotations", image_id=lambda x: 2**62 + x["image_id"])(value),
    ),
    "ids of categories with a gap, from 0": lambda value: (
        every("categories", id=lambda x: 10 * (x["id"] - 1))(value),
        every("annotations", category_id=lambda x: 10 * (x["category_id"] - 1))(value),
    ),
    "a supercategory null": every("categories", supercategory=None, keypoints=[]),
    "a box without width": first(bbox=[4, 4, 0, 8]),
    "a box of negative width": first(bbox=[12, 4, -8, 8]),
    "a box outside": first(bbox=[40, 4, 8, 8]),
    "a box half outside": first(bbox=[28, 4, 8, 8]),
    "a small box over the border by less than a pixel": first(bbox=[30.5, 4, 2.4, 8]),
    "keypoints of none": every("annotations", keypoints=None, area=None),
    "damaged keypoints": every("annotations", keypoints="none", iscrowd=None),
    "twice the same object": lambda value: value["annotations"].append({**value["annotations"][0], "id": 99}),
    "a class without objects": lambda value: value["categories"].append({"id": 3, "name": "cow"}),
    "keypoints, and an annotation with the id 0": lambda value: (
        every("annotations", keypoints=[1, 2, 2], num_keypoints=1)(value),
        first(id=0, bbox=[12, 4, -8, 8])(value),
        without("annotations", "iscrowd", "area")(value),
    ),
    "segmentation of two corners": every("annotations", segmentation=[[1, 2, 9, 11]]),
    "no segmentation": without("annotations", "segmentation"),
    "segmentation null": every("annotations", segmentation=None),
    "segmentation as text": every("annotations", segmentation="none"),
    "empty segmentation": every("annotations", segmentation=[]),
}


@pytest.fixture
def register(images, tmp_path, registered):
    def as_coco(value, **metadata):
        name = f"truth_{len(registered)}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(value))
        register_coco_instances(name, metadata, str(path), str(tmp_path))
        registered.append(name)
        return name

    return as_coco


def perfect(dicts, clipped=True):
    """(inputs, outputs) of a model that finds the targets of a training, or the boxes as they are in the file."""
    outputs = []
    for x in dicts:
        instances = Instances((x["height"], x["width"]))
        objects = [obj for obj in x["annotations"] if not obj.get("iscrowd")]
        boxes = [BoxMode.convert(list(obj["bbox"]), obj["bbox_mode"], BoxMode.XYXY_ABS) for obj in objects]
        boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        if clipped:
            boxes.clip((x["height"], x["width"]))
        instances.pred_boxes = boxes
        instances.pred_classes = torch.tensor([obj["category_id"] for obj in objects], dtype=torch.int64)
        instances.scores = torch.linspace(0.9, 0.5, len(objects))
        keep = instances.pred_boxes.nonempty()
        outputs.append({"instances": instances[keep]})
    return dicts, outputs


def box_ap(name, backend, pairs, folder=None):
    evaluator = FastCOCOEvaluator(name, tasks=("bbox",), backend=backend, output_dir=folder, distributed=False)
    evaluator.reset()
    evaluator.process(*pairs)
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("case", ODD)
def test_perfect_detections_have_ap_100(case, backend, register, tmp_path, caplog):
    value = content()
    ODD[case](value)
    name = register(value)
    dicts = load_dataset(name)
    for clipped in (True,) if case == "a box outside" else (True, False):
        results = box_ap(name, backend, perfect(dicts, clipped), str(tmp_path / "out"))
        assert results["AP"] == pytest.approx(100, abs=1e-3)
        assert {key for key in results if key.startswith("AP-")} >= {"AP-cat", "AP-dog"}
    if "text" not in case:
        assert "hotcoco cannot" not in caplog.text


MASKS = {
    "polygons": None,
    "a polygon that is not in a list": lambda obj: obj["segmentation"][0],
    "points": lambda obj: [np.reshape(obj["segmentation"][0], (-1, 2)).tolist()],
    "a polygon of two points beside": lambda obj: [[1, 2, 9, 11], *obj["segmentation"]],
    "an odd number beside": lambda obj: [*obj["segmentation"], [1, 2, 3, 4, 5, 6, 7]],
    "runs": lambda obj: {"size": [24, 32], "counts": [100, 50, 24 * 32 - 150]},
}


@pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])
@pytest.mark.parametrize("case", MASKS)
def test_perfect_masks_have_ap_100(case, backend, register):
    value = content()
    if MASKS[case]:
        every("annotations", segmentation=MASKS[case])(value)
    without("annotations", "area")(value)
    name = register(value)
    dicts, outputs = perfect(load_dataset(name))
    for x, output in zip(dicts, outputs, strict=True):
        masks = [rasterize(obj["segmentation"], (24, 32), "") for obj in x["annotations"]]
        output["instances"].pred_masks = torch.from_numpy(np.array(masks))
    evaluator = FastCOCOEvaluator(name, tasks=("bbox", "segm"), backend=backend, distributed=False)
    evaluator.reset()
    evaluator.process(dicts, outputs)
    assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100, abs=1e-3)


def test_another_model_may_have_masks_without_naming_its_tasks(register):
    value = content()
    name = register(value)
    dicts, outputs = perfect(DatasetCatalog.get(name))
    for x, output in zip(dicts, outputs, strict=True):
        masks = [rasterize(obj["segmentation"], (24, 32), "") for obj in x["annotations"]]
        output["instances"].pred_masks = torch.from_numpy(np.array(masks))
    evaluator = FastCOCOEvaluator(name, distributed=False)
    evaluator.reset()
    evaluator.process(dicts, outputs)
    results = evaluator.evaluate()
    assert [results[task]["AP"] for task in ("bbox", "segm")] == pytest.approx([100, 100])


def test_crowds_count_neither_for_nor_against(register):
    value = content()
    value["annotations"].append({**value["annotations"][1], "id": 50, "bbox": [0, 0, 32, 24], "iscrowd": 1})
    name = register(value)
    dicts, outputs = perfect(load_dataset(name))
    results = box_ap(name, "auto", (dicts, outputs))
    assert results["AP"] == pytest.approx(100, abs=1e-3)


def test_the_truth_of_dicts_is_never_a_stale_one(images, registered, tmp_path):
    """The set is corrected and evaluated again in the same folder, in the same process."""
    objects = [{"bbox": [4, 4, 8, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}]
    dicts = [{"file_name": str(path), "width": 32, "height": 24, "annotations": list(objects)} for path in images]
    DatasetCatalog.register("mine", lambda: dicts)
    registered.append("mine")
    MetadataCatalog.get("mine").set(thing_classes=["cat"])
    before = box_ap("mine", "auto", perfect(load_dataset("mine")), str(tmp_path))
    assert before["AP"] == pytest.approx(100)
    dicts[0]["annotations"] = [{**objects[0], "bbox": [14, 4, 8, 8]}]
    detections = perfect(load_dataset("mine"))
    assert box_ap("mine", "auto", detections, str(tmp_path))["AP"] == pytest.approx(100)
    assert not MetadataCatalog.get("mine").get("json_file")


@pytest.mark.parametrize("mode", [BoxMode.XYXY_REL, BoxMode.XYWH_REL])
def test_dicts_without_ids_sizes_classes_and_pixels(images, registered, mode):
    box = [0.25, 0.25, 0.75, 0.75] if mode == BoxMode.XYXY_REL else [0.25, 0.25, 0.5, 0.5]
    objects = [{"bbox": np.array(box), "bbox_mode": mode, "category_id": 1}]
    DatasetCatalog.register("mine", lambda: [{"file_name": path, "annotations": objects} for path in images])
    registered.append("mine")
    dicts = load_dataset("mine")
    assert [(x["image_id"], x["width"], x["height"]) for x in dicts] == [(i, 32, 24) for i in range(4)]
    assert dicts[0]["annotations"][0]["bbox"] == pytest.approx(
        [8, 6, 24, 18] if "XYXY" in mode.name else [8, 6, 16, 12]
    )
    for backend in ("hotcoco", "pycocotools"):
        assert box_ap("mine", backend, perfect(dicts))["AP"] == pytest.approx(100)


def test_boxes_of_remote_images_of_unknown_size_are_clipped_where_the_border_is_known(registered):
    objects = [{"bbox": [-6, 4, 12, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}]
    DatasetCatalog.register("remote", lambda: [{"file_name": "s3://bucket/0.jpg", "annotations": objects}])
    registered.append("remote")
    instances = Instances((1000, 1000), pred_boxes=Boxes(torch.tensor([[-3.0, 4, 6, 12]])), scores=torch.ones(1))
    instances.pred_classes = torch.zeros(1, dtype=torch.int64)
    pairs = load_dataset("remote"), [{"instances": instances}]
    assert box_ap("remote", "pycocotools", pairs)["AP"] == pytest.approx(100)


def test_area_and_size_classes(register):
    """A box of 8 x 8 with a mask of half of it is small by both; 40 x 40 is medium by the box, small by the mask."""
    value = content()
    value["images"][0] |= {"width": 100, "height": 100}
    value["annotations"] = value["annotations"][:1]
    value["annotations"][0] |= {"bbox": [0, 0, 40, 40], "segmentation": [[0, 0, 20, 0, 20, 20, 0, 20]], "area": 0}
    truth = load_truth(register(value), masks=False)
    assert truth.content["annotations"][0]["area"] == 400
    value["annotations"][0]["segmentation"] = "none"
    assert load_truth(register(value), masks=False).content["annotations"][0]["area"] == 1600


def test_metadata_that_do_not_fit_the_file_are_errors(register, images, tmp_path, registered):
    value = content()
    path = tmp_path / "of_dicts.json"
    path.write_text(json.dumps(value))
    for name, metadata, message in (
        (
            "a",
            {"thing_classes": ["dog", "cat"]},
            r"thing_classes \['dog', 'cat'\], but .*of_dicts\.json has \['cat', 'dog'\]",
        ),
        ("b", {"thing_dataset_id_to_contiguous_id": {1: 0}}, "has the category id 2, which is not in its metadata's"),
    ):
        DatasetCatalog.register(name, list)
        registered.append(name)
        MetadataCatalog.get(name).set(json_file=str(path), **metadata)
        with pytest.raises(InputError, match=message):
            load_truth(name, masks=False)
    for contiguous in ({1: 0}, {1: 0, 2: 2}, {1: 0, 2: 1, 3: 1}, [0, 1]):
        name = f"contiguous {contiguous}"
        DatasetCatalog.register(name, lambda: [{"file_name": "a.jpg"}])
        registered.append(name)
        MetadataCatalog.get(name).set(thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id=contiguous)
        with pytest.raises(InputError, match=r"has the thing_dataset_id_to_contiguous_id .* map an id of each class"):
            load_truth(name, masks=False)
    with pytest.raises(InputError, match=r"registered with the classes \['dog', 'cat'\], but .* has \['cat', 'dog'\]"):
        load_dataset(register(value, thing_classes=["dog", "cat"]))


@pytest.mark.parametrize("changes", [{"bbox": [14, 4, 8, 8]}, {"category_id": 1}, {"iscrowd": 1}, None])
def test_a_loader_of_other_objects_than_the_file_is_heard(register, caplog, changes):
    name = register(content())
    dicts = load_dataset(name)
    truth = load_truth(name, masks=False)
    if changes:
        dicts[0]["annotations"][0].update(changes)
    warn_of_other_objects(name, dicts, truth)
    heard = "1 of 8 objects are not in" in caplog.text and "1 of its 8 are not in the data set" in caplog.text
    assert heard == bool(changes)
    for x in dicts:
        x["annotations"] = []
    caplog.clear()
    warn_of_other_objects(name, dicts, truth)  # a loader may leave them to the file
    assert not caplog.text
