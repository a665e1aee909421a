"""How the cost grows with what may be large: a fitted slope and a picture for each.

N  images, Q queries, M objects, R rows of the mask head
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import evaluation
from benchmarks.agreement import check_detections
from benchmarks.contestants import image_tensor, original, our_config
from benchmarks.timing import Sample, Settings, race, require, slope, take_turns
from benchmarks.training import check_losses, loss_contestants
from detr.modeling.mask_head import MaskFeatures
from tests.parity.oracle import load_oracle
from tests.parity.pairs import config, converted

WORSE_THAN_LINEAR = 1.05
REPEATS = 3  # a slope rests on several sizes, and needs less of each
Contestants = Mapping[str, Callable[[], Any]]
Measured = dict[str, dict[int, Sample]]  # who -> size -> seconds


@dataclass(frozen=True)
class Topic:
    """title: what grows, as the axis says it; reason: why, where it grows worse than linear"""

    title: str
    reason: str
    measure: Callable[[Settings], Measured]


def curve(topic: Topic, settings: Settings) -> dict[str, Any]:
    """The topic's entry in results.json."""
    lines = {}
    for who, samples in topic.measure(settings).items():
        sizes, seconds = list(samples), [sample.median for sample in samples.values()]
        power = slope(sizes, seconds)
        worse = power > WORSE_THAN_LINEAR
        lines[who] = {"sizes": sizes, "seconds": seconds, "slope": power, "worse_than_linear": worse}
    return {"title": topic.title, "reason": topic.reason, "lines": lines}


def _measure(sizes: Sequence[int], contestants: Callable[[int], Contestants], check: Any, repeats: int) -> Measured:
    found: Measured = {}
    for size in sizes:
        for who, sample in race(contestants(size), repeats, check)[0].items():
            found.setdefault(who, {})[size] = sample
    return found


def _repeats(settings: Settings) -> int:
    return 1 if settings.smoke else REPEATS


@functools.cache
def _boxes() -> tuple[Any, Any, Any]:
    """Ours, the original, and its postprocessing, with the same weights."""
    model, _, postprocessors = original("detr_R_50")
    return converted(model, our_config("detr_R_50", 800)), model, postprocessors["bbox"]


def _detectors(images: int, height: int, width: int) -> Contestants:
    """From images in memory to boxes; the original's are normalized already."""
    ours, theirs, postprocess = _boxes()
    image = image_tensor(height, width)
    batch = load_oracle().nested_tensor_from_tensor_list(list(ours.preprocess([{"image": image}] * images).tensor))
    sizes = torch.tensor([[height, width]] * images)
    return {
        "ours": torch.no_grad()(lambda: ours([{"image": image}] * images)[0]),
        "original": torch.no_grad()(lambda: postprocess(theirs(batch), sizes)[0]),
    }


def image_area(settings: Settings) -> Measured:
    heights = [128, 256] if settings.smoke else [240, 320, 480, 640, 800]
    found: Measured = {}
    for height in heights:
        width = height * 4 // 3
        contestants = _detectors(1, height, width)
        check = functools.partial(check_detections, size=(height, width), rows=92)
        for who, sample in race(contestants, _repeats(settings), check)[0].items():
            found.setdefault(who, {})[height * width] = sample
    return found


def batch(settings: Settings) -> Measured:
    height, width = (128, 160) if settings.smoke else (320, 416)
    sizes = [1, 2] if settings.smoke else [1, 2, 4, 8]
    check = functools.partial(check_detections, size=(height, width), rows=92)
    return _measure(sizes, lambda n: _detectors(n, height, width), check, _repeats(settings))


def objects(settings: Settings) -> Measured:
    sizes = [1, 10] if settings.smoke else [1, 3, 10, 30, 100]
    return _measure(sizes, lambda m: _losses(objects=m, queries=100), check_losses, _repeats(settings))


def queries(settings: Settings) -> Measured:
    sizes = [25, 50] if settings.smoke else [25, 50, 100, 200, 400]
    return _measure(sizes, lambda q: _losses(objects=7, queries=q), check_losses, _repeats(settings))


def _losses(objects: int, queries: int) -> Contestants:
    ours, theirs = loss_contestants(4, objects, queries)
    return {"ours": ours, "original": theirs}


def kept_queries(settings: Settings) -> Measured:
    """The mask heads alone; the original's has no way to leave queries out."""
    sizes = [5, 10] if settings.smoke else [5, 10, 20, 50, 100]
    height, width = (128, 160) if settings.smoke else (480, 640)
    theirs = original("detr_R_50", panoptic=True)[0]
    ours = converted(theirs, config("detr_R_50", folder="COCO-PanopticSegmentation"))
    with torch.no_grad():
        image = image_tensor(height, width)
        features = ours.forward_network(ours.preprocess([{"image": image}]), return_intermediate=False).mask_features
    assert features is not None  # the model has a mask head
    contestants = functools.partial(_mask_heads, ours.mask_head, theirs, features)
    return _measure(sizes, contestants, _check_masks, _repeats(settings))


def _mask_heads(ours: Any, theirs: Any, features: MaskFeatures, kept: int) -> Contestants:
    image_of, query_of = torch.zeros(kept, dtype=torch.int64), torch.arange(kept)
    nowhere = torch.zeros(1, *features.memory.shape[-2:], dtype=torch.bool)

    @torch.no_grad()
    def original_head() -> Any:
        attention = theirs.bbox_attention(features.queries, features.memory, mask=nowhere)
        return theirs.mask_head(features.projected, attention, list(features.pyramid))[:, 0]

    return {"ours": torch.no_grad()(lambda: ours(features, image_of, query_of)), "original": original_head}


def _check_masks(outputs: dict[str, Any]) -> str:
    ours = outputs["ours"]
    apart = (ours - outputs["original"][: len(ours)]).abs().max().item()
    return require("ours", {"mask logits": apart}, {"mask logits": 1e-2})


def evaluated_images(settings: Settings) -> Measured:
    """pycocotools takes minutes for the largest sets, so that it is given one turn, and not the last of them."""
    sizes = [20, 40] if settings.smoke else [500, 1000, 2000, 5000]
    found: Measured = {"ours": {}, "pycocotools": {}}
    for size in sizes:
        data = evaluation.make_data(size)
        evaluation.count_ours(data)
        ours = functools.partial(evaluation.count_ours, data)
        found["ours"][size] = take_turns({"ours": ours}, _repeats(settings))["ours"]
        if size <= 2000:
            theirs = functools.partial(evaluation.count_pycocotools, data)
            found["pycocotools"][size] = take_turns({"theirs": theirs}, 1)["theirs"]
    return found


TOPICS: dict[str, Topic] = {
    "area": Topic(
        "inference: pixels of the image",
        "the encoder's self-attention compares every position with every other, so it is quadratic in the area, while "
        "the backbone is linear.",
        image_area,
    ),
    "batch": Topic(
        "inference: images of a batch",
        "nothing in the network is; caches are too small for a larger batch's activations.",
        batch,
    ),
    "objects": Topic(
        "matching and losses: objects an image",
        "the assignment of M objects to Q queries takes up to M^2 Q steps.",
        objects,
    ),
    "queries": Topic(
        "matching and losses: queries",
        "the assignment visits all queries for each object, and the cost matrix outgrows the caches.",
        queries,
    ),
    "kept": Topic(
        "mask head: queries kept",
        "each query has the same work; its maps outgrow the caches.",
        kept_queries,
    ),
    "images": Topic(
        "COCO evaluation: images",
        "the matches of all images are sorted by score, and held in memory.",
        evaluated_images,
    ),
}
