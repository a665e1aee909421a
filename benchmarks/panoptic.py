"""Panoptic segmentation of one image, with all 100 queries kept and with 20.

Ours does what DefaultPredictor does, and then writes the PNG that the authors' postprocessing ends with. The
original does what its evaluation does: boxes, instance masks and panoptic map.
"""

import functools
import io
from typing import Any

import numpy as np
import torch
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from torch import Tensor

from benchmarks.agreement import BOUNDS, differences, found
from benchmarks.contestants import (
    Detector,
    original,
    original_preprocessing,
    our_config,
    our_predictor,
    photograph,
    transformers_parts,
)
from benchmarks.inference import image_size
from benchmarks.timing import Result, Settings, race, require
from detr.checkpoint.rows import PANOPTIC, coco_rows
from tests.parity.oracle import load_oracle

NAME, ROWS = "detr_R_50", 251
PIXELS = {"other pixels of the map": 1e-3, "other pixels of the masks": 1e-3}
TRANSFORMERS = "transformers, panoptic map alone"
LAST_THING = 90  # the last COCO id of a thing


def all_queries(settings: Settings) -> Result:
    return _panoptic(settings, kept=None)


def twenty_queries(settings: Settings) -> Result:
    return _panoptic(settings, kept=20)


def _panoptic(settings: Settings, kept: int | None) -> Result:
    """kept: how many queries the score threshold leaves; None for all."""
    size = image_size(settings)
    photo = photograph(*size)
    threshold = 0.0 if kept is None else threshold_of(photo, kept)
    contestants = {
        "ours": _ours(size[0], threshold),
        "original": _original(size[0], threshold),
    }
    if kept is None:  # like the original, it makes all masks whatever is kept: once is enough
        contestants[TRANSFORMERS] = _transformers(size[0], threshold)
    else:  # instance masks of all 100 are the original's way; nobody asked for them here
        contestants["original without instance masks"] = _original(size[0], threshold, instances=False)
    samples, agreement = race(
        {name: functools.partial(detect, photo) for name, detect in contestants.items()},
        settings.repeats,
        lambda outputs: _check(outputs, size, threshold),
    )
    return Result(samples, agreement=agreement, note=f"score threshold {threshold:.4f}")


@torch.no_grad()
def threshold_of(photo: Image.Image, kept: int) -> float:
    """Half way between the scores of the last query to keep and of the next."""
    model = original(NAME, panoptic=True)[0].detr
    image = original_preprocessing(photo.height)(photo)
    logits = model(load_oracle().nested_tensor_from_tensor_list([image]))["pred_logits"][0]
    scores = logits.softmax(-1)[:, :-1].amax(-1).sort(descending=True).values
    return float(scores[kept - 1 : kept + 1].mean())


def _ours(height: int, threshold: float) -> Detector:
    keys = {"INSTANCE_SCORE_THRESHOLD": threshold, "PANOPTIC.SCORE_THRESHOLD": threshold}
    opts = [part for key, value in keys.items() for part in (f"MODEL.DETR.{key}", value)]
    predict = our_predictor(our_config(NAME, height, *opts, panoptic=True))

    def detect(photo: Image.Image) -> Any:
        output = predict(photo)
        with io.BytesIO() as file:
            Image.fromarray(id2rgb(output["panoptic_seg"][0].numpy())).save(file, format="PNG")
            return {**output, "png_string": file.getvalue()}

    return detect


def _original(height: int, threshold: float, instances: bool = True) -> Detector:
    model, _, postprocessors = original(NAME, panoptic=True)
    preprocess, batch = original_preprocessing(height), load_oracle().nested_tensor_from_tensor_list
    is_thing = postprocessors["panoptic"].is_thing_map
    to_map = load_oracle().PostProcessPanoptic(is_thing, threshold=threshold)

    @torch.no_grad()
    def detect(photo: Image.Image) -> Any:
        image = preprocess(photo)
        outputs = model(batch([image]))
        sizes, input_sizes = torch.tensor([photo.size[::-1]]), torch.tensor([image.shape[1:]])
        results = postprocessors["bbox"](outputs, sizes)
        if instances:
            results = postprocessors["segm"](results, outputs, sizes, input_sizes)
        return {**results[0], **to_map(outputs, input_sizes, sizes)[0]}

    return detect


def _transformers(height: int, threshold: float) -> Detector:
    """Its map is made by other rules, so that the network's outputs alone are comparable."""
    processor, model = transformers_parts(NAME, height, panoptic=True)
    stuff = set(range(LAST_THING + 1, ROWS - 1))

    @torch.no_grad()
    def detect(photo: Image.Image) -> Any:
        inputs = processor(photo, return_tensors="pt")
        outputs = model(**inputs)
        maps = processor.post_process_panoptic_segmentation(
            outputs, threshold=threshold, label_ids_to_fuse=stuff, target_sizes=[photo.size[::-1]]
        )
        boxes = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[photo.size[::-1]])
        return {**boxes[0], "map": maps[0]}

    return detect


def _check(outputs: dict[str, Any], size: tuple[int, int], threshold: float) -> str:
    """Boxes of everybody; map and masks of ours. Raises Disagreement."""
    ours, reference = outputs["ours"], outputs["original"]
    expected = found(reference, ROWS)
    things = (expected.classes <= LAST_THING) & (expected.scores >= threshold)
    mine = expected._replace(**{k: v[things] for k, v in expected._asdict().items()})
    masks = ours["instances"].pred_masks != reference["masks"][things, 0].bool()
    apart = {
        **differences(found(ours, ROWS), mine, size),
        "other pixels of the map": (_categories_of_ours(ours) != _categories(reference)).float().mean().item(),
        "other pixels of the masks": masks.float().mean().item(),
    }
    text = require("ours", apart, {**BOUNDS, **PIXELS})
    if TRANSFORMERS in outputs:
        theirs = differences(found(outputs[TRANSFORMERS], ROWS), expected, size)
        text += "; " + require("transformers", theirs, BOUNDS)
    return text


def _categories_of_ours(output: Any) -> Tensor:
    """(H, W): the COCO id of each pixel's segment, -1 where there is none."""
    ids, segments = output["panoptic_seg"]
    to_coco = coco_rows(PANOPTIC)
    return _look_up(ids, {x["id"]: int(to_coco[x["category_id"]]) for x in segments})


def _categories(output: Any) -> Tensor:
    png = np.array(Image.open(io.BytesIO(output["png_string"])))
    return _look_up(torch.from_numpy(rgb2id(png)), {x["id"]: x["category_id"] for x in output["segments_info"]})


def _look_up(ids: Tensor, categories: dict[int, int]) -> Tensor:
    table = torch.full((int(ids.max()) + 1,), -1)
    for key, category in categories.items():
        table[key] = category
    return table[ids.long()]
