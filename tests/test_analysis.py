"""The seven models against the numbers measured on the authors' code, counts by hand, and any other config."""

import importlib.util
import json

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import BitMasks
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from detr import Detr
from detr.analysis import Part, analyze, rough_training_macs
from detr.engine.defaults import load_config
from detr.errors import InputError, exit_with_one_line
from tests.conftest import QUICKSTART, ROOT, TINY, TRAINING_QUERIES, as_opts, make_input

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
STAGES = {f"backbone {stage}" for stage in ("stem", "res2", "res3", "res4", "res5")}
PARTS = STAGES | {"input projection", "encoder", "decoder", "heads"}
# Pixels of the feature maps at 800 x 1066, by stride.
PIXELS = {32: 25 * 34, 16: 50 * 67, 8: 100 * 134, 4: 200 * 267}
QUERIES, LAYERS, D = 100, 6, 256


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("analyze_model", ROOT / "tools" / "analyze_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_masks():
    settings = {**TINY, "MODEL.DETR.PANOPTIC.ENABLED": False}
    return load_config(str(QUICKSTART.with_name("shapes_panoptic.yaml")), as_opts(settings))


def attention_over_the_image(positions):
    """MACs of queries x keys, in the encoder and in the decoder's cross-attention."""
    return LAYERS * (positions + QUERIES) * positions * D


def repeated_by_the_authors_mask_head(positions):
    """MACs by which the authors' mask head exceeds ours, for the masks of all queries.

    Theirs convolves the projected features anew for each query (the first D of lay1's D + 8 channels); ours does it
    once an image. Ours convolves the backbone's maps (adapted to 128, 64 and 32 channels) apart from the queries' and
    adds the results; theirs adds the maps first, and convolves the sums.
    """
    features = (D + 8) * D * 9 * positions
    levels = 9 * (128 * 64 * PIXELS[16] + 64 * 32 * PIXELS[8] + 32 * 16 * PIXELS[4])
    return (QUERIES - 1) * features - levels


@pytest.mark.slow
@pytest.mark.parametrize("name", ORIGINAL)
def test_the_seven_models(name):
    """fvcore did not see the products of queries and keys: the authors' attention makes them with ``baddbmm``."""
    analysis = analyze(load_config(str(CONFIGS / f"{name}.yaml"), []))
    parameters, checkpoint, gmacs = ORIGINAL[name]
    assert analysis.total.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert analysis.checkpoint / 2**20 == pytest.approx(checkpoint, rel=0.01)
    positions = PIXELS[16 if name.endswith("DC5") else 32]
    macs = analysis.total.macs - attention_over_the_image(positions)
    if "mask head" in analysis.parts:
        macs += repeated_by_the_authors_mask_head(positions)
        assert analysis.total.trainable == analysis.parts["mask head"].parameters
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert analysis.parts.keys() - {"mask head"} == PARTS


@pytest.mark.slow
def test_a_training_step_counted_by_hand():
    """Backward, a product costs one for each of its factors that needs a gradient."""
    analysis = analyze(load_config(str(R50), []))
    forward = analysis.total.macs + (LAYERS - 1) * analysis.parts["heads"].macs  # of every decoder layer
    frozen = analysis.parts["backbone stem"].macs + analysis.parts["backbone res2"].macs
    # What comes from res2 needs no gradient, nor do the decoder's first values, which are zeros.
    inputs = 256 * 128 * PIXELS[4] + 256 * 512 * PIXELS[8] + D * D * QUERIES
    # The weights of attention are computed again, not kept.
    again = LAYERS * D * (PIXELS[32] ** 2 + QUERIES**2 + PIXELS[32] * QUERIES)
    assert analysis.training_macs == forward + 2 * (forward - frozen) - inputs + again


@pytest.mark.slow
def test_the_mask_head_by_hand():
    cfg = load_config(str(PANOPTIC), [])
    every, few = (analyze(cfg, size=(128, 160), queries_kept=n).parts["mask head"].macs for n in (None, 20))
    widths = [(8, 264, 4 * 5), (264, 128, 4 * 5), (128, 64, 8 * 10), (64, 32, 16 * 20), (32, 16, 32 * 40),
              (16, 1, 32 * 40)]  # fmt: skip
    query = sum(9 * a * b * pixels for a, b, pixels in widths)
    image = 9 * (256 * 264 * 20 + 128 * 64 * 80 + 64 * 32 * 320 + 32 * 16 * 1280)  # convolved once
    image += 1024 * 128 * 80 + 512 * 64 * 320 + 256 * 32 * 1280  # the adapters
    image += D * D * (QUERIES + 20) + QUERIES * 20 * D  # attention without values, of all queries
    assert (every, few) == (image + QUERIES * query, image + 20 * query)


@pytest.mark.slow
def test_the_counts_are_those_of_a_real_step(tiny_masks):
    """With data, matching and losses: FLOPs of a whole training step and of inference."""
    model = build_model(tiny_masks).train()
    x = make_input([[10.0, 10.0, 40.0, 60.0]] * 3, [0, 1, 2])
    x["instances"].gt_masks = BitMasks(torch.ones(3, 96, 128, dtype=torch.bool))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as training:
        sum(model([x, x]).values()).backward()
    model.eval().requires_grad_(False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as inference:
        instances = model([x])[0]["instances"]
    analysis = analyze(tiny_masks, size=(96, 128), batch=2, objects=3, queries_kept=len(instances))
    assert 2 * analysis.training_macs == training.get_total_flops()
    assert 2 * analysis.total.macs == inference.get_total_flops()


def test_a_subclass_and_what_it_adds(monkeypatch):
    class WithScores(Detr):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.score_embed = nn.Linear(self.transformer.d, 2)

        def forward_heads(self, *args):
            outputs = super().forward_heads(*args)
            return outputs._replace(boxes=outputs.boxes + self.score_embed(self.query_embed.weight).mean())

    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "WithScores", WithScores)
    settings = {**TINY, "MODEL.META_ARCHITECTURE": "WithScores"}
    analysis = analyze(load_config(str(QUICKSTART), as_opts(settings)), size=(96, 128))
    queries = load_config(str(QUICKSTART), []).MODEL.DETR.NUM_OBJECT_QUERIES
    assert analysis.parts["other"] == Part(parameters=2 * 33, trainable=2 * 33, macs=queries * 32 * 2)


def test_the_quickstart():
    analysis = analyze(load_config(str(QUICKSTART), []), size=(128, 128), batch=8)
    model = build_model(load_config(str(QUICKSTART), []))
    model.fold_queries()
    assert analysis.total.parameters == sum(p.numel() for p in model.parameters())
    assert analysis.parts["backbone stem"].trainable > 0
    # 8 x 8 positions, 2 layers of 128: four projections, two products, two layers of 512
    assert analysis.parts["encoder"].macs == 2 * (64 * 4 * 128 * 128 + 2 * 64 * 64 * 128 + 64 * 2 * 128 * 512)


@pytest.mark.parametrize("config", ["shapes_detection", "shapes_panoptic"])
def test_what_is_for_training_alone_is_not_analyzed(config):
    """Neither parameters nor operations, nor the size of the checkpoint."""
    plain, training = (
        analyze(load_config(str(QUICKSTART.with_name(f"{config}.yaml")), as_opts({**TINY, **queries})), size=(96, 128))
        for queries in ({}, TRAINING_QUERIES)
    )
    assert training == plain


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert "one image of 256 x 320, with the masks of 20 queries" in out
    assert f"{content['training_macs'] / 1e9:.2f} GMACs, forward and backward" in out


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


def test_the_rough_count_of_a_step_is_near_the_exact_one(tiny_config, tiny_masks):
    frozen = tiny_masks.clone()
    frozen.defrost()
    frozen.MODEL.DETR.FREEZE_DETR = True
    for cfg in (tiny_config(), tiny_masks, frozen):
        exact = analyze(cfg, size=(96, 128), objects=1).training_macs
        assert rough_training_macs(cfg, (96, 128)) == pytest.approx(exact, rel=0.35)
