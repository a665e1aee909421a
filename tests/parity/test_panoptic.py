"""The same logits and masks give the panoptic map of the original's PostProcessPanoptic, pixel for pixel."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from detr.checkpoint.rows import THINGS
from tests.parity.oracle import PANOPTIC_CLASSES, lively_original, run_original, sample_image
from tests.parity.scenes import (
    CATEGORY_IDS,
    LATE_STUFF,
    MIN_AREA,
    NO_OBJECT,
    Scene,
    Size,
    assert_equal,
    first_round,
    make_scene,
    num_merged,
    original,
    ours,
)

# The network's input, and the map: as large, larger, smaller; of odd sizes; larger in one direction alone.
SIZES = [
    ((160, 224), (160, 224)),
    ((157, 222), (240, 333)),
    ((160, 224), (97, 131)),
    ((149, 171), (320, 367)),
    ((149, 171), (71, 83)),
    ((149, 171), (200, 101)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("image_size", "size"), SIZES)
def test_made_up_scenes(image_size: Size, size: Size, seed: int) -> None:
    scene = make_scene(image_size, seed)
    found = ours(scene, image_size, size)
    assert_equal(found, original(scene, image_size, size))

    # The scene has what may go wrong.
    labels, areas = first_round(scene, image_size, size)
    things = labels < THINGS
    assert len(labels) == len(scene.logits) / 2
    assert 5 <= len(found[1]) <= 30
    assert {x["isthing"] for x in found[1]} == {True, False}
    assert num_merged(labels, areas) >= 2
    assert (things & (areas > 0) & (areas <= MIN_AREA)).sum() >= 2
    # A segment that becomes tiny only after a first drop: with its blob, the exact merge keeps it.
    assert areas[0] <= MIN_AREA < areas[1]
    exact = ours(scene, image_size, size, stuff_merge="exact")
    assert LATE_STUFF not in [x["category_id"] for x in found[1]]
    (kept,) = [x for x in exact[1] if x["category_id"] == LATE_STUFF]
    assert kept["area"] >= areas[:2].sum()


def test_near_equal_logits() -> None:
    """They differ by less than the original's softmax can tell: then the first query wins."""
    scene = make_scene((160, 224), seed=0)
    flat = Scene(scene.logits, scene.masks * 1e-8)
    found = ours(flat, (160, 224), (160, 224))
    assert_equal(found, original(flat, (160, 224), (160, 224)))
    assert len(found[1]) >= 5
    assert not torch.equal(found[0], ours(scene, (160, 224), (160, 224))[0])


def test_nothing_is_left() -> None:
    """A map of 2 x 2 pixels has no room for a segment: it is void, as the original's, whose id 0 has no segment."""
    scene = make_scene((160, 224), seed=0)
    found = ours(scene, (160, 224), (2, 2))
    assert_equal(found, original(scene, (160, 224), (2, 2)))
    assert found[1] == []


def test_no_query_takes_part() -> None:
    """The original fails then; ours is void, as where nothing is left."""
    scene = make_scene((160, 224), seed=0)
    nothing = Scene(scene.logits[1::2], scene.masks[1::2])
    with pytest.raises(RuntimeError, match="Non-empty"):
        original(nothing, (160, 224), (120, 200))
    found, segments = ours(nothing, (160, 224), (120, 200))
    assert found.shape == (120, 200)
    assert not found.any()
    assert segments == []


@pytest.mark.parametrize("size", [(96, 128), (200, 301), (50, 43)])
def test_padding_does_not_count(size: Size) -> None:
    """An image alone and in a batch that is padded right and below, with the same logits over its pixels.

    The logits' border goes on for a cell in the padding, where bilinear sampling looks; beyond it is what a
    network may say of padding. Without cutting off, and in the original, another map comes out.
    """
    alone, padded_size, image_size = make_scene((96, 128), seed=0), (160, 192), (96, 128)
    assert alone.masks.shape[1:] == (24, 32)
    masks = 20 * torch.randn(len(alone.masks), 40, 48, generator=torch.Generator().manual_seed(0))
    masks[:, :25, :33] = F.pad(alone.masks[None], (0, 1, 0, 1), mode="replicate")[0]
    padded = Scene(alone.logits, masks)

    found = ours(padded, image_size, size, padded_size=padded_size)
    expected = ours(alone, image_size, size)
    assert torch.equal(found[0], expected[0])
    assert found[1] == expected[1]
    assert_equal(found, original(alone, image_size, size))
    assert len(found[1]) >= 5
    squeezed = ours(padded, padded_size, size)
    assert (squeezed[0] != found[0]).float().mean() > 0.5
    assert (original(padded, image_size, size)[0] + 1 != found[0]).float().mean() > 0.5


@pytest.fixture(scope="module")
def network() -> Any:
    """The original's panoptic R50, with biases so that queries are sure, and many of stuff."""
    model = lively_original("detr_R_50", num_classes=PANOPTIC_CLASSES, masks=True)[0]
    with torch.no_grad():
        for parameter in model.detr.class_embed.parameters():
            parameter *= 2
        model.detr.class_embed.bias[CATEGORY_IDS[THINGS:NO_OBJECT]] += 2
    return model


@torch.no_grad()
def scenes_of(model: Any, images: list[Tensor]) -> list[Scene]:
    outputs = run_original(model, images)
    return [
        Scene(logits[:, CATEGORY_IDS], masks)
        for logits, masks in zip(outputs["pred_logits"], outputs["pred_masks"], strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image_size", "size", "seed"),
    [((160, 224), (160, 224), 0), ((149, 171), (320, 367), 1), ((157, 222), (45, 61), 2)],
)
def test_outputs_of_a_network(network: Any, image_size: Size, size: Size, seed: int) -> None:
    (scene,) = scenes_of(network, [sample_image(*image_size, seed=seed)])
    found = ours(scene, image_size, size)
    assert_equal(found, original(scene, image_size, size))

    labels, areas = first_round(scene, image_size, size)
    assert 5 <= len(found[1]) <= 30
    assert {x["isthing"] for x in found[1]} == {True, False}
    assert num_merged(labels, areas) >= 5
    assert (areas.min() <= MIN_AREA) == (size == (45, 61))
    # Pixels of merged stuff changed hands: the map is not the right one.
    assert not torch.equal(found[0], ours(scene, image_size, size, stuff_merge="exact")[0])


@pytest.mark.slow
def test_outputs_of_a_network_for_a_padded_batch(network: Any) -> None:
    """The original is right where it is given the masks at the input's size, without the padding."""
    image_sizes, sizes, padded_size = [(160, 131), (117, 224)], [(213, 175), (90, 173)], (160, 224)
    scenes = scenes_of(network, [sample_image(*size, seed=seed) for seed, size in enumerate(image_sizes)])
    for scene, image_size, size in zip(scenes, image_sizes, sizes, strict=True):
        found = ours(scene, image_size, size, padded_size=padded_size)
        masks = F.interpolate(scene.masks[None], size=padded_size, mode="bilinear", align_corners=False)[0]
        unpadded = Scene(scene.logits, masks[:, : image_size[0], : image_size[1]])
        assert_equal(found, original(unpadded, image_size, size))
        assert 5 <= len(found[1]) <= 30
        assert not torch.equal(found[0], original(scene, image_size, size)[0] + 1)


def test_panoptic_quality(tmp_path: Path) -> None:
    """Through Detectron2's evaluator ours has the original's numbers, though its ids begin with 1 and not 0.

    The truth is the exact map of the same masks with noise; its first segment is void. In the last image both
    are left with nothing.
    """
    evaluator = COCOPanopticEvaluator("coco_2017_val_panoptic")
    evaluator.reset()
    truth, theirs = [], []
    for image_id, size in enumerate([(96, 128), (97, 131), (2, 2)]):
        scene = make_scene((96, 128), seed=image_id)
        file = {"image_id": image_id, "file_name": f"{image_id}.png"}
        evaluator.process([file], [{"panoptic_seg": ours(scene, (96, 128), size)}])
        ids, segments = original(scene, (96, 128), size)
        theirs.append({**file, "segments_info": segments, "png_string": png(ids)})

        noise = torch.randn(scene.masks.shape, generator=torch.Generator().manual_seed(image_id))
        noisy = Scene(scene.logits, scene.masks + 0.5 * noise)
        ids, segments = ours(noisy, (96, 128), size, stuff_merge="exact", min_area=0)
        segments = [
            {**x, "category_id": CATEGORY_IDS[x["category_id"]].item(), "iscrowd": 0} for x in segments if x["id"] > 1
        ]
        truth.append({**file, "segments_info": segments, "png_string": png(ids * (ids > 1))})
    found = evaluator._predictions
    assert [len(x["segments_info"]) > 0 for x in found] == [True, True, False]
    assert [len(x["segments_info"]) > 0 for x in truth] == [True, True, True]
    expected = quality(truth, theirs, tmp_path / "theirs")
    assert quality(truth, found, tmp_path / "ours") == expected
    assert 0.1 < expected["pq"] < 0.9
    # The last image's missed segments count.
    assert quality(truth[:2], theirs[:2], tmp_path / "two")["pq"] > expected["pq"]


def png(ids: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(id2rgb(ids.numpy())).save(file, format="PNG")
    return file.getvalue()


def quality(truth: list[dict[str, Any]], predictions: list[dict[str, Any]], folder: Path) -> dict[str, float]:
    """COCO's PQ, SQ and RQ in [0, 1] of annotations with "file_name", "segments_info" and a map as "png_string"."""
    for name, annotations in (("truth", truth), ("predictions", predictions)):
        (folder / name).mkdir(parents=True)
        for x in annotations:
            (folder / name / x["file_name"]).write_bytes(x["png_string"])
    categories = {i: {"isthing": i <= 90} for i in CATEGORY_IDS[:-1].tolist()}
    pairs = list(zip(truth, predictions, strict=True))
    counts = pq_compute_single_core(0, pairs, str(folder / "truth"), str(folder / "predictions"), categories)
    average: dict[str, float] = counts.pq_average(categories, isthing=None)[0]
    return average
