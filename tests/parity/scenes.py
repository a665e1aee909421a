"""Masks and logits of made-up images, and their panoptic map by this project and by the original.

Q  queries
R  queries that take part
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from panopticapi.utils import rgb2id
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from detr.checkpoint.rows import NEVER, PANOPTIC, THINGS, coco_rows
from detr.modeling.panoptic import panoptic_queries, panoptic_segmentation
from tests.parity.oracle import PANOPTIC_CLASSES, load_oracle

THRESHOLD = 0.85
MIN_AREA = 4
NO_OBJECT = PANOPTIC  # the last of ours
LATE_STUFF = PANOPTIC - 1
IS_THING = torch.arange(PANOPTIC) < THINGS
CATEGORY_IDS = coco_rows(PANOPTIC)  # (134,): where our classes are in the original's head
Size = tuple[int, int]  # (height, width) in pixels
Panoptic = tuple[Tensor, list[dict[str, Any]]]


@dataclass
class Scene:
    """What the network says of an image: logits (Q, 134), masks (Q, h, w) logits at a quarter of the input."""

    logits: Tensor
    masks: Tensor


def ours(
    scene: Scene,
    image_size: Size,
    size: Size,
    *,
    padded_size: Size | None = None,
    min_area: int = MIN_AREA,
    stuff_merge: str = "original",
) -> Panoptic:
    queries, labels, scores = panoptic_queries(scene.logits, THRESHOLD)
    return panoptic_segmentation(
        scene.masks[queries],
        labels,
        scores,
        padded_size=padded_size or image_size,
        image_size=image_size,
        size=size,
        is_thing=IS_THING,
        min_area=min_area,
        stuff_merge=stuff_merge,
    )


def original(scene: Scene, image_size: Size, size: Size) -> Panoptic:
    """Its map (height, width) and segments as it writes them: ids 0, 1, ..., and category ids of COCO."""
    logits = scene.logits.new_full((len(scene.logits), PANOPTIC_CLASSES + 1), NEVER)
    logits[:, CATEGORY_IDS] = scene.logits
    outputs = {"pred_logits": logits[None], "pred_masks": scene.masks[None]}
    outputs["pred_boxes"] = torch.rand(1, len(logits), 4)
    postprocess = load_oracle().PostProcessPanoptic({i: i <= 90 for i in range(201)}, threshold=THRESHOLD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        (result,) = postprocess(outputs, torch.tensor([image_size]), torch.tensor([size]))
    png = np.array(Image.open(io.BytesIO(result["png_string"])))
    return torch.from_numpy(rgb2id(png)), result["segments_info"]


def assert_equal(found: Panoptic, expected: Panoptic) -> None:
    """Ours begins with id 1, since Detectron2 takes 0 for void."""
    segments = [
        {
            "id": x["id"] - 1,
            "category_id": CATEGORY_IDS[x["category_id"]].item(),
            "isthing": x["isthing"],
            "area": x["area"],
        }
        for x in found[1]
    ]
    assert segments == expected[1]
    assert torch.equal(found[0], expected[0] + bool(expected[1]))


def make_scene(input_size: Size, seed: int) -> Scene:
    """Blobs of things and stuff with specks of things among them; every other query takes no part.

    LATE_STUFF has a speck, whose query comes first, and a blob, which the speck gets when they are merged. The
    original then drops the blob's query, and a round later the speck.
    """
    generator = torch.Generator().manual_seed(seed)
    num_blobs, num_specks = 18, 24
    h, w = (-(-length // 4) for length in input_size)
    coarse = torch.randn(num_blobs, 1, 6, 7, generator=generator)
    blobs = 3 * F.interpolate(coarse, size=(h, w), mode="bicubic", align_corners=False)[:, 0]
    specks = torch.full((num_specks, h * w), -20.0)
    cells = torch.randperm(h * w, generator=generator)[:num_specks]
    above = 0.1 * 1.25 ** torch.arange(num_specks)  # 0.1 to 17: the higher a speck's logit, the larger it is
    above[0] = 4
    specks[torch.arange(num_specks), cells] = blobs.amax(0).flatten()[cells] + above
    specks = specks.unflatten(1, (h, w))
    masks = torch.cat([specks[:1], blobs, specks[1:]])

    labels = torch.randint(0, THINGS, (len(masks),), generator=generator)
    labels[:2] = LATE_STUFF
    labels[2:num_blobs:2] %= 4
    labels[2:num_blobs:2] += THINGS  # four classes of stuff
    q = 2 * len(masks)
    scene = Scene(torch.randn(q, PANOPTIC + 1, generator=generator), torch.full((q, h, w), 30.0))
    scene.masks[::2] = masks
    scene.logits[::2].scatter_(1, labels[:, None], 12.0)
    scene.logits[1::4, NO_OBJECT] = 12.0
    scene.logits[3::4, 7] = 5.0  # e^5 against about 133 times e^0.5: a score of 0.4
    return scene


def first_round(scene: Scene, image_size: Size, size: Size) -> tuple[Tensor, Tensor]:
    """Labels (R,) and areas (R,) in pixels of the map, before anything is merged or dropped."""
    queries, labels, _ = panoptic_queries(scene.logits, THRESHOLD)
    masks = F.interpolate(scene.masks[queries][None], size=image_size, mode="bilinear", align_corners=False)[0]
    best = Image.fromarray(masks.argmax(0).int().numpy()).resize(size[::-1], Image.Resampling.NEAREST)
    return labels, torch.from_numpy(np.array(best)).flatten().bincount(minlength=len(labels))


def num_merged(labels: Tensor, areas: Tensor) -> int:
    """Queries of stuff with pixels that go to an earlier query of the class."""
    earlier = (labels[:, None] == labels).tril(-1).any(1)
    return int((earlier & (labels >= THINGS) & (areas > 0)).sum())
