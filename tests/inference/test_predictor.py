"""``Predictor``: the results of evaluation, from whatever names a model and an image."""

import dataclasses
import http.server
import itertools
import threading
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

import detr
from detr.checkpoint import DetrCheckpointer
from detr.engine.defaults import load_config
from detr.engine.trainer import Trainer
from detr.errors import InputError
from detr.export import export
from detr.inference import image_inputs
from detr.inference.predictor import Predictor
from detr.modeling.batches import BATCHES_AHEAD
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts
from tests.lively import build_lively

PANOPTIC = ROOT / "configs" / "quickstart" / "shapes_panoptic.yaml"
SHAPES = ("disc", "square", "triangle", "star")


@pytest.fixture
def photos(tmp_path):
    """Images of three sizes, in no order of sizes."""
    rng = np.random.default_rng(0)
    paths = []
    for i, (height, width) in enumerate([(90, 120), (64, 64), (90, 120), (120, 70), (64, 64), (90, 120), (64, 64)]):
        pixels = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).resize((width, height)).save(paths[-1])
    return paths


def same(a, b, atol=0.0):
    """Whether two images' Instances are equal."""
    assert a.image_size == b.image_size
    assert len(a) == len(b) > 0
    assert a.get_fields().keys() == b.get_fields().keys()
    torch.testing.assert_close(a.pred_boxes.tensor, b.pred_boxes.tensor, rtol=0, atol=atol * 100)
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=atol)
    assert torch.equal(a.pred_classes, b.pred_classes)
    return True


def test_results_are_those_of_evaluation_bit_for_bit(shapes_root, tmp_path):
    settings = {**TINY, "INPUT.MIN_SIZE_TEST": 150, "INPUT.MAX_SIZE_TEST": 300}
    DetrCheckpointer(build_lively(PANOPTIC, settings), str(tmp_path)).save("model")
    opts = [*as_opts(settings), "MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    cfg = load_config(str(PANOPTIC), opts)
    model = Trainer.build_model(cfg).eval()
    DetrCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    predictor = Predictor(config_file=str(PANOPTIC), opts=opts, threshold=0)
    predictor.model.postprocessor.panoptic = model.postprocessor.panoptic  # a threshold of 0 counts for maps too
    for x in itertools.islice(Trainer.build_test_loader(cfg, "shapes_val_panoptic"), 3):
        expected = model(x)[0]
        (output,) = predictor.predict([x[0]["file_name"]])
        assert same(output["instances"], expected["instances"])
        assert torch.equal(output["instances"].pred_masks, expected["instances"].pred_masks)
        assert torch.equal(output["panoptic_seg"][0], expected["panoptic_seg"][0])
        assert output["panoptic_seg"][1] == expected["panoptic_seg"][1]


def test_the_names_of_the_weights_win_over_those_of_the_config_files_data_set(tmp_path):
    model = build_lively(QUICKSTART, TINY)
    model.card = dataclasses.replace(model.card, class_names=("square", "ant", "bee", "cat"))
    DetrCheckpointer(model, str(tmp_path)).save("model")
    predictor = Predictor(tmp_path / "model.pth", config_file=str(QUICKSTART), opts=as_opts(TINY))
    assert predictor.class_names == ("square", "ant", "bee", "cat")
    assert torch.equal(predictor.model.class_embed.weight, model.class_embed.weight)  # no row is moved


def test_options_behind_weights_count(weights, photos, tmp_path):
    content = torch.load(weights)
    average = {name: value + 1 for name, value in content["model"].items() if name.startswith("class_embed")}
    path = tmp_path / "with_average.pth"
    torch.save({**content, "model_ema": {**content["model"], **average}}, path)
    assert same(Predictor(f"{path}?weights=model", threshold=0)(photos[0]), Predictor(weights, threshold=0)(photos[0]))


def test_an_image_may_be_a_path_a_picture_or_an_array_of_named_color(weights, photos):
    predictor = Predictor(weights, threshold=0.1)
    expected = predictor(photos[0])
    rgb = np.asarray(Image.open(photos[0]))
    assert same(predictor(str(photos[0])), expected)
    assert same(predictor(Image.open(photos[0])), expected)
    assert same(predictor(rgb, color="RGB"), expected)
    assert same(predictor(cv2.imread(str(photos[0])), color="BGR"), expected)
    swapped = predictor(rgb, color="BGR")
    assert not torch.equal(swapped.scores, expected.scores[: len(swapped)])


def test_a_photo_is_turned_upright(weights, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    upright, sideways = Image.fromarray(pixels), Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    sideways.save(tmp_path / "phone.png", exif=exif)
    predictor = Predictor(weights, threshold=0)
    assert same(predictor(tmp_path / "phone.png"), predictor(upright))


@pytest.mark.parametrize(
    ("image", "color", "message"),
    [
        (np.zeros((8, 8, 3), np.uint8), None, 'say color="RGB"'),
        (np.zeros((8, 8, 3), np.uint8), "rgb", "color is 'rgb'"),
        (np.zeros((8, 8), np.uint8), "RGB", r"shape \(8, 8\)"),
        (np.zeros((8, 8, 3), np.float32), "RGB", "float32 is no image"),
        ("nowhere.jpg", None, r"nowhere\.jpg \(No such file"),
        (str(QUICKSTART), None, "shapes_detection.yaml is no image"),
    ],
)
def test_what_is_no_image(image, color, message, weights):
    with pytest.raises(InputError, match=message):
        Predictor(weights)(image, color=color)
    with pytest.raises(InputError, match="a Tensor is no image"):
        Predictor(weights)([torch.zeros(3, 8, 8)])


@pytest.fixture
def server(photos):
    """The address of a server of the photos; the same path gives the next one each time."""
    served = iter(photos)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith("/camera.png"):
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(next(served).read_bytes())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_image_from_the_web_is_fetched_each_time(weights, photos, server, cache):
    predictor = Predictor(weights, threshold=0.1)
    for photo in photos[:2]:
        assert same(predictor(f"{server}/camera.png?a=b"), predictor(photo))
    assert not any(cache.rglob("*.png*"))
    with pytest.raises(InputError, match=r"cannot download http.*gone.png \(Not Found\)"):
        predictor(f"{server}/gone.png")


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_change_neither_order_nor_results(batch_size, weights, photos):
    expected = [Predictor(weights, threshold=0.1)(photo) for photo in photos]
    predictor = Predictor(weights, threshold=0.1, batch_size=batch_size)
    sizes = []
    predictor.model.register_forward_pre_hook(lambda _, args: sizes.append([x["image"].shape for x in args[0]]))
    found = predictor(photos)
    assert all(same(a, b, atol=1e-4) for a, b in zip(found, expected, strict=True))
    assert all(len(set(shapes)) == 1 for shapes in sizes)  # none is padded
    assert max(map(len, sizes)) == min(batch_size, 3)


def test_images_are_read_as_their_results_are_taken(weights):
    """One image of its own size may not hold up an endless stream of others."""
    read = itertools.count()

    def endless():
        yield np.zeros((40, 90, 3), np.uint8)
        for _ in read:
            yield np.zeros((64, 64, 3), np.uint8)

    outputs = Predictor(weights, batch_size=3).predict(endless(), color="RGB")
    next(outputs)
    assert next(read) <= 3 * BATCHES_AHEAD
    for _ in range(50):
        next(outputs)
    assert next(read) <= 50 + 4 * BATCHES_AHEAD


def test_class_names_are_those_given_else_those_saved_else_those_of_the_data_set(weights, tmp_path):
    assert Predictor(weights).class_names == SHAPES
    assert Predictor(weights, classes=list("abcd")).class_names == tuple("abcd")
    with pytest.raises(InputError, match="2 class names are given, but the model has 4 classes"):
        Predictor(weights, classes=["a", "b"])
    plain = tmp_path / "plain.pth"
    torch.save({"model": torch.load(weights, weights_only=True)["model"]}, plain)
    of_data = Predictor(plain, config_file=str(QUICKSTART), opts=as_opts(TINY))
    assert of_data.class_names == SHAPES
    assert of_data.category_ids == (1, 2, 4, 7)
    unknown = as_opts({**TINY, "DATASETS.TRAIN": "('no_such',)", "DATASETS.TEST": "()"})
    unnamed = Predictor(plain, config_file=str(QUICKSTART), opts=unknown)
    assert unnamed.class_names is None
    assert unnamed.category_ids == (0, 1, 2, 3)
    assert "no_such" not in DatasetCatalog


def test_the_config_is_found_beside_weights_without_a_card(weights, photos, tmp_path):
    plain = tmp_path / "plain.pth"
    torch.save({"model": torch.load(weights, weights_only=True)["model"]}, plain)
    with pytest.raises(InputError, match="says nothing of its config"):
        Predictor(plain)
    (tmp_path / "config.yaml").write_text(load_config(str(QUICKSTART), as_opts(TINY)).dump())
    assert same(Predictor(plain, threshold=0.1)(photos[0]), Predictor(weights, threshold=0.1)(photos[0]))


@pytest.mark.slow
def test_an_exported_model_is_used_the_same_way(weights, photos, tmp_path):
    cfg = load_config(str(QUICKSTART), as_opts({**TINY, "MODEL.WEIGHTS": weights}))
    export(cfg, str(tmp_path / "exported"), "torchscript")
    native, exported = (Predictor(x, threshold=0.1, batch_size=2) for x in (weights, tmp_path / "exported"))
    found = [predictor(photos) for predictor in (native, exported)]
    assert all(same(a, b, atol=1e-3) for a, b in zip(*found, strict=True))
    assert exported.class_names == SHAPES


def test_released_models_are_known_by_name(monkeypatch):
    loaded = []
    monkeypatch.setattr(DetrCheckpointer, "load", lambda self, path, **_: loaded.append(path) or {})
    monkeypatch.setattr(DetrCheckpointer, "reinitialized", [], raising=False)
    small = as_opts({"MODEL.DETR.ENC_LAYERS": 1, "MODEL.DETR.DEC_LAYERS": 1})
    for name in ("detr_R_50", "detr://detr_R_50"):
        predictor = Predictor(name, opts=small)
        assert predictor.class_names[0] == "person"
        assert predictor.category_ids[-1] == 90
    assert loaded == ["detr://detr_R_50"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "detr_r50"}, r"there is no model detr_r50; did you mean detr://detr_R_50\?"),
        ({"model": "no.pth"}, r"there is no model no\.pth.*released are detr_R_50, "),
        ({"model": str(ROOT / "docs")}, "holds no exported model"),
        ({"model": "detr://detr_R_51"}, "no released model is named 'detr_R_51'; did you mean"),
        ({"model": str(QUICKSTART)}, "shapes_detection.yaml is refused|cannot be read|no PyTorch file"),
        ({}, "no model is named"),
        ({"config_file": str(QUICKSTART)}, "no weights are named"),
        ({"model": "detr_R_50", "device": "cuda:7"}, "CUDA is not available here"),
        ({"model": "detr_R_50", "batch_size": 0}, "batch size is 0"),
        ({"model": "detr_R_50", "opts": ("INPUT.MIN_SIZE_TEST", "-5")}, "MIN_SIZE_TEST is -5 and"),
    ],
)
def test_what_is_no_model(arguments, message):
    if "device" in arguments and torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(InputError, match=message):
        Predictor(**arguments)


def test_weights_may_lie_on_the_web(weights, photos, cache):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=weights.parent)) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        predictor = Predictor(f"http://127.0.0.1:{running.server_port}/model.pth", threshold=0.1)
        running.shutdown()
    assert same(predictor(photos[0]), Predictor(weights, threshold=0.1)(photos[0]))


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_weights_of_another_model_are_an_error(weights):
    with pytest.raises(InputError, match="this would predict with random weights"):
        Predictor(weights, config_file=str(QUICKSTART), opts=as_opts({**TINY, "MODEL.DETR.NUM_CLASSES": 9}))


def test_the_package_has_it():
    assert detr.Predictor is Predictor


def test_images_are_found_in_folders_and_by_patterns(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deeper/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    folder = str(tmp_path)

    def found(*patterns):
        return [Path(x).name for x in image_inputs.find_images([*patterns])]

    assert found(folder) == ["a.PNG", "b.jpg"]
    assert found(f"{folder}/*.jpg", folder) == ["b.jpg", "a.PNG"]
    assert found(f"{folder}/*", f"{folder}/**/*.jpg") == ["a.PNG", "b.jpg", "notes.txt", "c.jpg"]
    assert found("missing.jpg", "http://x/y.jpg") == ["missing.jpg", "y.jpg"]
    with pytest.raises(InputError, match="holds no images"):
        found(str(ROOT / "docs" / ".."))
    with pytest.raises(InputError, match="nothing matches"):
        found(f"{folder}/*.gif")
