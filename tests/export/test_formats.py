"""Exported models predict what the model does, at sizes and batches other than the example's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluators, inference_on_dataset
from PIL import Image

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer
from detr.errors import InputError
from detr.evaluation.evaluators import ThingsEvaluator
from detr.export import load
from detr.export.networks import parts
from detr.modeling.mask_head import ROWS_AT_ONCE
from detr.modeling.postprocessing import PanopticSettings
from tests.conftest import QUICKSTART, ROOT, TRAINING_QUERIES, as_opts, make_input
from tests.export.conftest import PANOPTIC, SETTINGS, run, save_lively
from tests.lively import assert_same, batch

# (height, width): batches and sizes that no example and no check has, with padding, down to two rows of features
BATCHES = [[(96, 128)], [(20, 150)], [(96, 128), (131, 97), (33, 200), (128, 128)]]


def test_a_panoptic_model_is_the_same_in_every_format(exported, panoptic):
    model = load(str(exported), "cpu")
    assert sum(assert_same(model, panoptic[1], sizes) for sizes in BATCHES) > 5
    checked = json.loads((exported / "export.json").read_text())["checked"]
    assert [len(x["images"]) for x in checked] == [1, 3]
    assert all(0 <= value < 1e-3 for x in checked for value in x["differences"].values())


def test_images_smaller_than_a_feature(exported, panoptic):
    """Only torch.export cannot take them, and reports it."""
    model, eager = load(str(exported), "cpu"), panoptic[1]
    images = eager.preprocess(batch([(12, 15), (9, 16)]))
    if json.loads((exported / "export.json").read_text())["format"] == "torch_export":
        with pytest.raises(InputError, match="takes images of at least 17 x 17 pixels, not 12 x 16"):
            model.forward_network(images)
    else:
        with torch.no_grad():
            expected = eager.forward_network(images, return_intermediate=False)
        logits, boxes, *_ = model.forward_network(images)
        torch.testing.assert_close(logits, expected.logits[-1], rtol=0, atol=1e-3)
        torch.testing.assert_close(boxes, expected.boxes[-1], rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def truth(panoptic, shapes_root, tmp_path_factory):
    """The name of a set of four images annotated with the model's own predictions: its AP and PQ are high."""
    name, known = "found_by_the_model", MetadataCatalog.get("shapes_val_panoptic")
    folder = tmp_path_factory.mktemp("truth")
    dicts = DatasetCatalog.get("shapes_val_panoptic")[:4]
    mapper = DetrDatasetMapper(load_config(str(PANOPTIC), panoptic[0]), is_train=False)
    classes = {**known.thing_dataset_id_to_contiguous_id, **known.stuff_dataset_id_to_contiguous_id}
    ids = {index: category for category, index in classes.items()}
    segmented, instances = [], []
    for x in dicts:
        with torch.no_grad():
            (output,) = panoptic[1]([mapper(x)])
        map_, segments = output["panoptic_seg"]
        png = f"{Path(x['file_name']).stem}.png"
        Image.fromarray(np.stack([map_.numpy(), map_.numpy() * 0, map_.numpy() * 0], -1).astype(np.uint8)).save(
            folder / png
        )
        infos = [
            {"id": s["id"], "category_id": ids[s["category_id"]], "area": s["area"], "iscrowd": 0} for s in segments
        ]
        segmented.append({"image_id": x["image_id"], "file_name": png, "segments_info": infos})
        found = output["instances"]
        for box, label, score in zip(
            found.pred_boxes.tensor.tolist(), found.pred_classes.tolist(), found.scores, strict=True
        ):
            if score > 0.5:
                left, top, width, height = box[0], box[1], box[2] - box[0], box[3] - box[1]
                annotation = {"image_id": x["image_id"], "category_id": ids[label], "bbox": [left, top, width, height]}
                instances.append({**annotation, "id": len(instances) + 1, "area": width * height, "iscrowd": 0})
    for path, original, annotations in (
        (folder / "panoptic.json", known.panoptic_json, segmented),
        (folder / "instances.json", known.json_file, instances),
    ):
        content = json.loads(Path(original).read_text())
        images = [image for image in content["images"] if image["id"] in {x["image_id"] for x in dicts}]
        path.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
    paths = {"panoptic_root": str(folder), "panoptic_json": str(folder / "panoptic.json")}
    DatasetCatalog.register(name, lambda: dicts)
    MetadataCatalog.get(name).set(
        **{**known.as_dict(), "name": name, **paths, "json_file": str(folder / "instances.json")}
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluate(model, name, folder):
    """Box AP and PQ."""
    cfg = load_config(str(PANOPTIC), as_opts({**SETTINGS, "OUTPUT_DIR": folder}))
    evaluator = DatasetEvaluators(
        [ThingsEvaluator(name, tasks=("bbox",), output_dir=str(folder)), COCOPanopticEvaluator(name, str(folder))]
    )
    results = inference_on_dataset(model, Trainer.build_test_loader(cfg, name), evaluator)
    return results["bbox"]["AP"], results["panoptic_seg"]["PQ"]


def test_ap_and_pq_come_from_the_same_evaluator(exported, panoptic, truth, tmp_path):
    expected = evaluate(panoptic[1], truth, tmp_path)
    assert min(expected) > 60
    model = load(str(exported), "cpu")
    assert evaluate(model, truth, tmp_path) == pytest.approx(expected, abs=0.2)
    network = model.network

    def mirrored(images, sizes):
        return network(images.flip(-1), sizes)

    model.network = mirrored
    assert max(evaluate(model, truth, tmp_path)) < min(expected) - 10


def test_a_box_model_of_another_backbone_and_encoding(tmp_path):
    """Two features of a pyramid, sides divisible by 32; learned positions, pre-norm."""
    settings = {
        **SETTINGS,
        "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ("res3", "res4", "res5"),
        "MODEL.FPN.IN_FEATURES": ("res3", "res4", "res5"),
        "MODEL.DETR.IN_FEATURE": "p5",
        "MODEL.DETR.POSITION_EMBEDDING": "learned",
        "MODEL.DETR.PRE_NORM": True,
    }
    opts, eager = save_lively(QUICKSTART, tmp_path, settings)
    run(QUICKSTART, "torchscript", tmp_path / "exported", opts)
    model = load(str(tmp_path / "exported"), "cpu")
    assert model.size_divisibility == 32
    for sizes in BATCHES:
        assert_same(model, eager, sizes)


@pytest.mark.slow
def test_detr_r50_in_full_size(tmp_path):
    config = ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml"
    opts, eager = save_lively(config, tmp_path, {"MODEL.DEVICE": "cpu"})
    run(config, "openvino", tmp_path / "exported", opts)
    assert_same(load(str(tmp_path / "exported"), "cpu"), eager, [(256, 333), (320, 200)])


def test_masks_are_computed_for_confident_queries_only(panoptic, tmp_path):
    run(PANOPTIC, "torchscript", tmp_path / "exported", panoptic[0])
    model = load(str(tmp_path / "exported"), "cpu")
    decode, rows = model.mask_decoder, []

    def counted(*maps):
        rows.append(len(maps[0]))
        return decode(*maps)

    model.mask_decoder = counted
    model.postprocessor.score_threshold, model.postprocessor.panoptic = 0.7, PanopticSettings(0.8)
    (output,) = model([make_input([], [], (96, 128))])
    assert 0 < len(output["instances"]) <= sum(rows) < 20
    assert max(rows) <= ROWS_AT_ONCE
    model.postprocessor.score_threshold, model.postprocessor.panoptic, rows[:] = 1.1, None, []
    (output,) = model([make_input([], [], (96, 128))])
    assert rows == []
    assert output["instances"].pred_masks.shape == (0, 96, 128)


def test_the_axes_of_a_graph_are_those_that_vary(panoptic):
    network, decoder = parts(panoptic[1])
    assert list(network.axes) == ["images", "sizes"]
    assert network.outputs == ["logits", "boxes", "attention", "first", "coarse", "middle", "fine"]
    assert decoder.axes["attention"] == {0: "rows", 2: "height", 3: "width"}
    assert len(decoder.example) == len(decoder.axes) == 5


@pytest.mark.parametrize("queries", [{}, TRAINING_QUERIES], ids=["plain config", "training config"])
@pytest.mark.parametrize("format", ["torchscript", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_training_is_exported_as_the_plain_model(format, queries, tmp_path):
    """Whichever config names its checkpoint; of what is for training alone the graph has nothing."""
    (*_, weights), trained = save_lively(PANOPTIC, tmp_path, {**SETTINGS, **TRAINING_QUERIES})
    opts = as_opts({**SETTINGS, **queries, "MODEL.WEIGHTS": weights})
    run(PANOPTIC, format, tmp_path / "exported", opts)
    model = load(str(tmp_path / "exported"), "cpu")
    assert sum(assert_same(model, trained, sizes) for sizes in BATCHES) > 5
    if format == "torchscript":
        graph = torch.jit.load(tmp_path / "exported" / "network.pt").graph
        constants = [node for node in graph.findAllNodes("prim::Constant") if node.hasAttribute("value")]
        tensors = [node.t("value") for node in constants if node.kindOf("value") == "t"]
        shapes = {tuple(tensor.shape) for tensor in tensors}
        assert tuple(trained.training_queries.box_embed.layers[0].weight.shape) not in shapes
        assert any(torch.equal(tensor, trained.object_queries()) for tensor in tensors)
