"""Exported models: they are the model, at sizes and batches other than the example's, and say what is wrong."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor, default_argument_parser
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.modeling import build_model
from PIL import Image

import detr
import train_net
from detr.data.dataset_mapper import DetrDatasetMapper
from detr.engine.defaults import load_config
from detr.engine.evaluation import ThingsEvaluator
from detr.engine.trainer import Trainer
from detr.errors import InputError
from detr.export import export, get_config, load
from detr.export.checking import check
from detr.export.networks import parts
from detr.export.runtimes import FORMATS, RUNTIME_PACKAGES
from detr.export.writing import PACKAGES, write_graph
from detr.modeling.mask_head import ROWS_AT_ONCE
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts, make_input
from tools import export_model

PANOPTIC = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"
# At this threshold some queries take part in a map, and others do not.
SETTINGS = {**TINY, "MODEL.DEVICE": "cpu", "MODEL.DETR.PANOPTIC.SCORE_THRESHOLD": 0.35}
# (height, width): batches and sizes that no example and no check has, with padding, down to two rows of features
BATCHES = [[(96, 128)], [(20, 150)], [(96, 128), (131, 97), (33, 200), (128, 128)]]


@torch.no_grad()
def enliven(model):
    """Fresh weights make all queries alike: these give many classes, many scores and masks of some shape."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.7, 1.4, generator=generator)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    model.query_embed.weight.normal_(0, 2, generator=generator)
    model.eval()
    images = model.preprocess([make_input([], [], (128, 128), seed) for seed in range(4)])
    outputs = model.forward_network(images, return_intermediate=False)
    spread(model.class_embed, outputs.logits[-1], 3.0)
    spread(model.bbox_embed.layers[-1], outputs.boxes[-1].logit(), 1.0)
    if model.mask_head is not None:
        heads = model.mask_head.attention.heads
        model.mask_head.lay1.weight[:, -heads:] *= 100  # where a query looks, or all have one mask
        queries = torch.arange(model.query_embed.num_embeddings)
        masks = model.mask_head(outputs.mask_features, torch.zeros_like(queries), queries)
        spread(model.mask_head.out_lay, masks[..., None], 3.0)
    return model


def spread(layer, outputs, std):
    """Changes the layer so that its outputs (..., C) would have had mean 0 and this deviation."""
    outputs = outputs.flatten(0, -2)
    scale = std / outputs.std(0)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - outputs.mean(0)) * scale)


def saved(config, folder, settings=SETTINGS):
    """The KEY VALUE pairs of a lively model, its weights among them, and itself."""
    opts = as_opts(settings)
    torch.manual_seed(0)
    model = enliven(build_model(load_config(str(config), opts)))
    weights = str(folder / "lively.pth")
    torch.save({"model": model.state_dict()}, weights)
    return [*opts, "MODEL.WEIGHTS", weights], model


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    return saved(PANOPTIC, tmp_path_factory.mktemp("panoptic"))


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    return saved(QUICKSTART, tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, panoptic, tmp_path_factory):
    """The folder of a panoptic model, in each format."""
    folder = tmp_path_factory.mktemp(request.param) / "exported"
    run(PANOPTIC, request.param, folder, panoptic[0])
    return folder


@pytest.fixture(scope="module")
def scripted(boxes, tmp_path_factory):
    """The folder of a box model as TorchScript, which is made in no time. Tests copy what they damage."""
    folder = tmp_path_factory.mktemp("scripted") / "exported"
    run(QUICKSTART, "torchscript", folder, boxes[0])
    return folder


def run(config, format, folder, opts, *options):
    export_model.main(
        ["--config-file", str(config), "--format", format, "--output", str(folder), *options, *map(str, opts)]
    )


def batch(sizes):
    inputs = [make_input([], [], size, seed) for seed, size in enumerate(sizes)]
    inputs[-1].update(height=211, width=170)
    return inputs


@torch.no_grad()
def assert_same(model, eager, sizes):
    """Within 1e-3 of a score, and of the image for a box; masks and maps but for a thousandth of the pixels.

    Returns how many segments the maps have.
    """
    inputs = batch(sizes)
    num_segments = 0
    for found, expected in zip(model(inputs), eager(inputs), strict=True):
        assert found.keys() == expected.keys()
        ours, theirs = found["instances"], expected["instances"]
        assert ours.image_size == theirs.image_size
        assert len(theirs) > 0
        assert torch.equal(ours.pred_classes, theirs.pred_classes)
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=0, atol=1e-3)
        scale = torch.tensor(ours.image_size).flip(0).repeat(2)
        torch.testing.assert_close(ours.pred_boxes.tensor / scale, theirs.pred_boxes.tensor / scale, rtol=0, atol=1e-3)
        assert ours.has("pred_masks") == theirs.has("pred_masks")
        if ours.has("pred_masks"):
            assert 0.05 < theirs.pred_masks.float().mean() < 0.95
            assert (ours.pred_masks != theirs.pred_masks).float().mean() < 1e-3
        if "panoptic_seg" in expected:
            (our_map, our_segments), (map_, segments) = found["panoptic_seg"], expected["panoptic_seg"]
            assert [x["category_id"] for x in our_segments] == [x["category_id"] for x in segments]
            assert (our_map != map_).float().mean() < 1e-3
            num_segments += len(segments)
    return num_segments


def test_a_panoptic_model_is_the_same_in_every_format(exported, panoptic):
    model = load(str(exported), "cpu")
    assert sum(assert_same(model, panoptic[1], sizes) for sizes in BATCHES) > 5
    checked = json.loads((exported / "export.json").read_text())["checked"]
    assert [len(x["images"]) for x in checked] == [1, 3]
    assert all(0 <= value < 1e-3 for x in checked for value in x["differences"].values())


def test_images_smaller_than_a_feature(exported, panoptic):
    """Only torch.export cannot have them, and says so."""
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
    """The name of a set of four images in which everything is as the model itself finds it: its AP and PQ are high."""
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


def test_a_moved_folder_is_evaluated_by_train_net(scripted, boxes, shapes_root, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(scripted, moved)
    found = []
    for config, opts in ((moved / "config.yaml", []), (QUICKSTART, boxes[0])):
        folder = tmp_path / config.parent.name
        args = ["--config-file", str(config), "--eval-only", *opts, "OUTPUT_DIR", str(folder)]
        results = train_net.main(default_argument_parser().parse_args(args))
        assert results.keys() == {"bbox"}
        found.append(json.loads((folder / "inference" / "coco_instances_results.json").read_text()))
    assert len(found[0]) == 16 * 20
    for ours, theirs in zip(*found, strict=True):
        assert ours["category_id"] == theirs["category_id"]
        assert [ours["score"], *ours["bbox"]] == pytest.approx([theirs["score"], *theirs["bbox"]], abs=0.05)


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
    opts, eager = saved(QUICKSTART, tmp_path, settings)
    run(QUICKSTART, "torchscript", tmp_path / "exported", opts)
    model = load(str(tmp_path / "exported"), "cpu")
    assert model.size_divisibility == 32
    for sizes in BATCHES:
        assert_same(model, eager, sizes)


def test_detr_r50_in_full_size(tmp_path):
    config = ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml"
    opts, eager = saved(config, tmp_path, {"MODEL.DEVICE": "cpu"})
    run(config, "openvino", tmp_path / "exported", opts)
    assert_same(load(str(tmp_path / "exported"), "cpu"), eager, [(256, 333), (320, 200)])


def test_detectron2s_predictor(scripted, boxes):
    cfg = get_cfg()
    detr.add_detr_config(cfg)
    cfg.merge_from_file(str(scripted / "config.yaml"))
    image = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    found = DefaultPredictor(cfg)(image)["instances"]
    expected = DefaultPredictor(load_config(str(QUICKSTART), boxes[0]))(image)["instances"]
    assert torch.equal(found.pred_classes, expected.pred_classes)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=0.05)
    assert found.image_size == (90, 140)


def test_the_report_and_what_exists(scripted, boxes, tmp_path, capsys):
    folder = tmp_path / "new" / "exported"
    run(QUICKSTART, "torchscript", folder, boxes[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["weights", "lively.pth"]
    assert "network.pt" in lines[2]
    assert "on 1 image of 224 x 160: logits differ by at most" in lines[3]
    assert "on 3 images of 160 x 288, 256 x 192, 128 x 128" in lines[4]
    (folder / "network.pt").write_bytes(b"")
    with pytest.raises(InputError, match="exists: name another folder, or replace it with --overwrite"):
        run(QUICKSTART, "torchscript", folder, boxes[0])
    run(QUICKSTART, "torchscript", folder, boxes[0], "--overwrite")
    load(str(folder), "cpu")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("a")
    with pytest.raises(InputError, match="holds no exported model, and would be lost"):
        run(QUICKSTART, "torchscript", precious, boxes[0], "--overwrite")
    assert os.listdir(precious) == ["thesis.txt"]


def test_a_graph_that_is_not_the_model_is_refused_and_nothing_is_left(boxes, tmp_path, monkeypatch):
    def other(format, part, folder):
        with torch.no_grad():
            part.module.model.class_embed.bias[0] += 0.01
        write_graph(format, part, folder)
        with torch.no_grad():
            part.module.model.class_embed.bias[0] -= 0.01

    monkeypatch.setattr("detr.export.write_graph", other)
    with pytest.raises(InputError, match=r"on 1 image of 224 x 160 its logits differ by .*e-0[23], more than 0\.001"):
        run(QUICKSTART, "torchscript", tmp_path / "exported", boxes[0])
    assert os.listdir(tmp_path) == []


def test_a_baked_in_size_is_noticed(scripted, boxes):
    """A graph that takes every image for one of the example's size."""
    model = load(str(scripted), "cpu")
    network = model.network
    model.network = lambda images, sizes: network(images, torch.full_like(sizes, 160))
    with pytest.raises(InputError, match="the exported graph is not the model"):
        check(model, boxes[1])


def test_weights_that_are_not_whole_are_refused(boxes, tmp_path):
    state = {key: value for key, value in boxes[1].state_dict().items() if not key.startswith("class_embed")}
    torch.save({"model": state}, tmp_path / "half.pth")
    opts = [*as_opts(SETTINGS), "MODEL.WEIGHTS", tmp_path / "half.pth"]
    with pytest.raises(InputError, match="this would export random weights, class_embed is re-initialized"):
        run(QUICKSTART, "torchscript", tmp_path / "exported", opts)
    assert os.listdir(tmp_path) == ["half.pth"]


def test_no_weights_are_exported_with_a_warning(tmp_path, capsys):
    run(QUICKSTART, "torchscript", tmp_path / "exported", as_opts(SETTINGS))
    captured = capsys.readouterr()
    assert "WARNING: MODEL.WEIGHTS is empty, so that random weights are exported" in captured.err
    assert captured.out.splitlines()[0].split() == ["weights", "none:", "random", "ones"]


def test_another_architecture_is_told(tmp_path):
    opts = [*as_opts(SETTINGS), "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"]
    with pytest.raises(InputError, match="'GeneralizedRCNN': only Detr can be exported"):
        run(QUICKSTART, "torchscript", tmp_path / "exported", opts)


@pytest.mark.parametrize(("format", "name"), [(format, name) for format, names in PACKAGES.items() for name in names])
def test_a_missing_package_is_told_with_the_remedy(format, name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # as Python marks a module that cannot be imported
    with pytest.raises(InputError, match=rf"format {format} needs {name}, .*: pip install {name}, or .*\[export\]"):
        export(load_config(str(QUICKSTART), []), str(tmp_path / "exported"), format)


def test_what_runs_a_format_is_among_what_writes_it():
    assert all(set(RUNTIME_PACKAGES[format]) <= set(PACKAGES[format]) for format in FORMATS)
    listed = (ROOT / "setup.py").read_text().partition("EXPORT = [")[2].partition("]")[0]
    assert all(f'"{name}>=' in listed for names in PACKAGES.values() for name in names)


@pytest.fixture
def copy(scripted, tmp_path):
    return Path(shutil.copytree(scripted, tmp_path / "copy"))


def test_a_damaged_folder_is_told(copy):
    text = (copy / "export.json").read_text()
    for damaged, message in (
        (text[:40], "export.json is damaged"),
        ("[]", "export.json is damaged"),
        (text.replace('"layout": 1', '"layout": 2'), "has the layout 2, not 1"),
        (text.replace("torchscript", "caffe"), "the format is caffe"),
        (text.replace('"masks"', '"mask"'), "export.json is damaged"),
    ):
        (copy / "export.json").write_text(damaged)
        with pytest.raises(InputError, match=message):
            load(str(copy))
    (copy / "export.json").write_text(text)
    graph = (copy / "network.pt").read_bytes()
    (copy / "network.pt").write_bytes(graph[:-9])
    with pytest.raises(InputError, match=rf"has {len(graph) - 9} bytes, not the {len(graph)} that were written"):
        load(str(copy))
    (copy / "network.pt").write_bytes(bytes(len(graph)))
    with pytest.raises(InputError, match=r"network\.pt cannot be opened \(.*is it damaged\?"):
        load(str(copy))
    (copy / "network.pt").unlink()
    with pytest.raises(InputError, match=r"lacks network\.pt: copy the whole folder"):
        load(str(copy))
    (copy / "export.json").unlink()
    with pytest.raises(InputError, match=r"is no exported model, for it has no export\.json.*was it moved"):
        load(str(copy))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "MODEL.WEIGHTS",
            "model.pth",
            "MODEL.WEIGHTS is model.pth, but an exported model has its weights in its graph",
        ),
        ("MODEL.MASK_ON", True, "MODEL.MASK_ON is True, but .* was exported with False"),
        ("MODEL.DETR.NUM_CLASSES", 5, "NUM_CLASSES is 5, but .* was exported with 4"),
        ("MODEL.DETR.PANOPTIC.ENABLED", True, "PANOPTIC.ENABLED is True, which needs masks"),
        ("MODEL.DETR.EXPORTED", "", "MODEL.DETR.EXPORTED '' is no exported model"),
    ],
)
def test_a_config_that_does_not_fit_is_told(scripted, key, value, message):
    cfg = get_config(str(scripted))
    cfg.merge_from_list([key, value])
    with pytest.raises(InputError, match=message):
        build_model(cfg)


def test_without_a_gpu_the_config_takes_the_cpu(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    folder = shutil.copytree(scripted, tmp_path / "from a GPU")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("DEVICE: cpu", "DEVICE: cuda"))
    assert "DEVICE: cuda" in config.read_text()
    predictor = DefaultPredictor(get_config(str(folder)))
    assert len(predictor(np.zeros((96, 128, 3), np.uint8))["instances"]) > 0


def test_an_exported_model_is_not_trained(scripted):
    model = load(str(scripted), "cpu")
    with pytest.raises(InputError, match="cannot be trained: call eval"):
        model.train()([make_input([], [])])
    args = default_argument_parser().parse_args(["--config-file", str(scripted / "config.yaml")])
    with pytest.raises(InputError, match="cannot be trained: add --eval-only"):
        train_net.main(args)


def test_masks_are_computed_for_the_queries_that_count(panoptic, tmp_path):
    """Some at once, and none without a query."""
    run(PANOPTIC, "torchscript", tmp_path / "exported", panoptic[0])
    model = load(str(tmp_path / "exported"), "cpu")
    decode, rows = model.mask_decoder, []

    def counted(*maps):
        rows.append(len(maps[0]))
        return decode(*maps)

    model.mask_decoder = counted
    (output,) = model([make_input([], [], (96, 128))])
    assert len(output["instances"]) <= sum(rows) < 20
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
