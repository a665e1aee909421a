"""The seven models against the numbers measured on the authors' code, and any other config."""

import importlib.util
import json

import pytest
import torch
from detectron2.modeling import build_model

from detr.analysis import analyze, part_names, training_input
from detr.dry_run import count_kept
from detr.engine.defaults import load_config
from detr.errors import InputError, exit_with_one_line
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts

CONFIGS = ROOT / "configs"
R50 = CONFIGS / "COCO-Detection" / "detr_R_50.yaml"
PANOPTIC = CONFIGS / "COCO-PanopticSegmentation" / "detr_R_50.yaml"
# Millions of parameters, MiB of a checkpoint, GMACs at 800 x 1066 by fvcore: all of the authors' code.
ORIGINAL = {
    "COCO-Detection/detr_R_50": (41.52, 158.8, 80.0),
    "COCO-Detection/detr_R_50_DC5": (41.52, 158.8, 155.6),
    "COCO-Detection/detr_R_101": (60.46, 231.5, 143.5),
    "COCO-Detection/detr_R_101_DC5": (60.46, 231.5, 219.0),
    "COCO-PanopticSegmentation/detr_R_50": (42.90, 164.1, 236.6),
    "COCO-PanopticSegmentation/detr_R_50_DC5": (42.90, 164.1, 545.7),
    "COCO-PanopticSegmentation/detr_R_101": (61.84, 236.7, 300.1),
}
UNSEEN = {"encoder", "decoder"}  # where fvcore misses some
STAGES = {f"backbone {stage}" for stage in ("stem", "res2", "res3", "res4", "res5")}
PARTS = STAGES | UNSEEN | {"input projection", "heads", "losses"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("analyze_model", ROOT / "tools" / "analyze_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_seven_models(name):
    analysis = analyze(load_config(str(CONFIGS / f"{name}.yaml"), []))
    total = analysis.total
    parameters, checkpoint, gmacs = ORIGINAL[name]
    assert total.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert analysis.checkpoint / 2**20 == pytest.approx(checkpoint, rel=0.01)
    assert total.macs_fvcore / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert total.macs <= total.macs_fvcore + analysis.unseen_macs
    assert all(part.macs <= part.macs_fvcore for name, part in analysis.parts.items() if name not in UNSEEN)
    assert analysis.parts.keys() - {"mask head"} == PARTS


def test_the_mask_head_shares_an_image_s_work_among_its_queries():
    cfg = load_config(str(PANOPTIC), [])
    every, some, few = (analyze(cfg, size=(128, 160), queries_kept=n).parts["mask head"] for n in (None, 60, 20))
    assert every.macs - some.macs == some.macs - few.macs > 0  # 40 queries each
    assert few.macs > (every.macs - some.macs) // 2  # what the image alone needs comes on top
    assert every.macs < every.macs_fvcore == few.macs_fvcore


def test_memory_is_what_a_training_step_keeps_on_the_cpu():
    """The embedded shapes' model, with data; without dropout, where the CPU's attention is that of a GPU."""
    cfg = load_config(str(QUICKSTART.with_name("shapes_panoptic.yaml")), as_opts({**TINY, "MODEL.DETR.DROPOUT": 0.0}))
    analysis = analyze(cfg, size=(96, 128), objects=3)
    model = build_model(cfg).train()
    x = training_input((96, 128), 3, "cpu")
    x["instances"].gt_boxes.tensor[:] = torch.tensor([10.0, 10.0, 40.0, 60.0])
    kept = count_kept(model, part_names(model), lambda: model([x]))
    assert {name: part.kept for name, part in analysis.parts.items() if part.kept} == pytest.approx(kept, rel=0.01)


def test_memory_grows_with_the_batch_and_a_frozen_model_keeps_nothing():
    cfg = load_config(str(PANOPTIC), [])
    one, two = (analyze(cfg, size=(256, 320), batch=batch) for batch in (1, 2))
    assert two.total.macs == one.total.macs  # of one image
    assert two.parts["losses"].kept == pytest.approx(2 * one.parts["losses"].kept, rel=0.01)
    assert {name for name, part in one.parts.items() if part.kept} == {"mask head", "losses"}
    assert one.total.trainable == one.parts["mask head"].parameters


def test_the_quickstart():
    analysis = analyze(load_config(str(QUICKSTART), []), size=(128, 128), batch=8)
    model = build_model(load_config(str(QUICKSTART), []))
    assert analysis.total.parameters == sum(p.numel() for p in model.parameters())
    assert analysis.parts["backbone stem"].trainable > 0
    # 8 x 8 positions, 2 layers of 128: four projections, two products, two layers of 512
    assert analysis.parts["encoder"].macs == 2 * (64 * 4 * 128 * 128 + 2 * 64 * 64 * 128 + 64 * 2 * 128 * 512)


def test_another_backbone():
    features = "['res2', 'res3', 'res4', 'res5']"
    settings = {
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES": features,
        "MODEL.FPN.IN_FEATURES": features,
        "MODEL.DETR.IN_FEATURE": "p5",
        "MODEL.DETR.FREEZE_DETR": False,
    }
    analysis = analyze(load_config(str(PANOPTIC), as_opts(settings)), size=(256, 320))
    assert analysis.parts.keys() == PARTS | {"backbone, rest", "mask head"}
    pyramid = analysis.parts["backbone, rest"]  # 1x1 and 3x3 convolutions, of four levels
    assert pyramid.parameters == 256 * (256 + 512 + 1024 + 2048 + 4) + 4 * (256 * 256 * 9 + 256)
    pixels = [64 * 80, 32 * 40, 16 * 20, 8 * 10]
    lateral = sum(256 * channels * at for channels, at in zip((256, 512, 1024, 2048), pixels, strict=True))
    assert pyramid.macs == lateral + 256 * 256 * 9 * sum(pixels)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"MODEL.META_ARCHITECTURE": "GeneralizedRCNN"}, {}, "only Detr can be analyzed"),
        ({"MODEL.BACKBONE.NAME": "build_tree"}, {}, "MODEL.BACKBONE.NAME is 'build_tree', which is not registered"),
        (
            {"MODEL.DETR.POSITION_EMBEDDING": "learned"},
            {"size": (1700, 96)},
            "covers feature maps up to 50 x 50, not 54",
        ),
        ({}, {"queries_kept": 101}, "101 queries kept: MODEL.DETR.NUM_OBJECT_QUERIES allows 0 to 100"),
        ({}, {"objects": -1}, "-1 objects an image"),
        ({}, {"batch": 0}, "a batch of 0 images"),
    ],
)
def test_what_cannot_be_analyzed_is_told(settings, options, message):
    with pytest.raises(InputError, match=message):
        analyze(load_config(str(R50), as_opts(settings)), **options)


def test_the_script_prints_a_table_and_writes_its_numbers(script, tmp_path, capsys):
    path = tmp_path / "numbers.json"
    script.main(["--config-file", str(PANOPTIC), "--size", "256", "320", "--json", str(path),
                 "--queries-kept", "20", "MODEL.DETR.NUM_CLASSES", "133"])  # fmt: skip
    out = capsys.readouterr().out
    cells = {line.split("  ")[0]: line.split("  ")[1:] for line in out.splitlines()}
    content = json.loads(path.read_text())
    assert content["total"]["parameters"] == 42_869_219
    assert [x.strip() for x in cells["total"] if x.strip()][:2] == ["42,869,219", "1,333,657"]
    head = content["parts"]["mask head"]
    assert f"{head['macs'] / 1e9:.2f}" in [x.strip() for x in cells["mask head"]]
    assert "of one image of 256 x 320 at inference, with the masks of 20 queries" in " ".join(out.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "nowhere.yaml"], "error: the config file nowhere.yaml does not exist"),
        (
            ["--config-file", str(R50), "--size", "0", "640"],
            "error: images of 0 x 640 pixels: each side must be from 1",
        ),
        (["--config-file", str(R50), "MODEL.DETR.QUERIES", "5"], "unknown config key MODEL.DETR.QUERIES"),
        (["--config-file", str(R50), "--size", "64", "64", "--json", "/nowhere/x.json"], "cannot be written"),
    ],
)
def test_the_script_tells_a_mistake_in_one_line(script, args, message, capsys):
    with pytest.raises(SystemExit) as stopped, exit_with_one_line():
        script.main(args)
    err = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message in err
    assert err.count("\n") == 1
