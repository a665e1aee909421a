"""The same lively weights in our model, in the authors', in transformers' and in OpenVINO.

Weights and the authors' code come from the parity tests' oracle. A detector takes a photograph, PIL's RGB image of
a size that no resize changes, through all that its users run: preprocessing, network, postprocessing.
"""

import functools
import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultPredictor
from PIL import Image
from torch import Tensor, nn

from detr.convert.conversion import Request, convert
from tests.parity.oracle import (
    DROPPED_BIAS,
    PANOPTIC_CLASSES,
    detector,
    lively_original,
    load_oracle,
    original_checkpoint,
    sample_image,
)
from tests.parity.pairs import config

MAX_SIZE = 1333  # of the longer side, in everybody's preprocessing
Detector = Callable[[Image.Image], Any]

_FOLDER = tempfile.TemporaryDirectory(prefix="detr-benchmarks-")


@functools.cache
def original(name: str, panoptic: bool = False) -> tuple[Any, Any, dict[str, Any]]:
    """The authors' (model, criterion, postprocessors) in evaluation mode. Nobody may change them.

    In the panoptic one no query is ever no-object, so that a threshold alone says how many are kept.
    """
    if not panoptic:
        return lively_original(name)
    found = lively_original(name, num_classes=PANOPTIC_CLASSES, masks=True)
    with torch.no_grad():
        detector(found[0]).class_embed.bias[PANOPTIC_CLASSES] = DROPPED_BIAS
    return found


@functools.cache
def checkpoint(name: str, panoptic: bool = False) -> str:
    """The path of the original's weights, in the authors' format."""
    path = os.path.join(_FOLDER.name, f"{name}{'_panoptic' * panoptic}.pth")
    torch.save(original_checkpoint(original(name, panoptic)[0]), path)
    return path


def our_config(name: str, height: int, *opts: Any, panoptic: bool = False) -> CfgNode:
    """Of the model with the original's weights, for images ``height`` pixels high."""
    folder = "COCO-PanopticSegmentation" if panoptic else "COCO-Detection"
    weights = ["MODEL.WEIGHTS", checkpoint(name, panoptic)]
    return config(name, *weights, "INPUT.MIN_SIZE_TEST", height, *opts, folder=folder)


def our_predictor(cfg: CfgNode, model: Any = None) -> Detector:
    """Detectron2's DefaultPredictor, as it is. ``model``, if any, takes the place of the one that it builds."""
    predictor = DefaultPredictor(cfg)
    if model is not None:
        predictor.model = model
    return lambda photo: predictor(np.asarray(photo)[:, :, ::-1])  # it wants BGR


def original_preprocessing(height: int) -> Callable[[Image.Image], Tensor]:
    """The authors' validation transform, which has 800 for the height. Returns (3, H, W), normalized."""
    transforms = load_oracle().transforms
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = [transforms.RandomResize([height], max_size=MAX_SIZE), transforms.ToTensor(), normalize]
    return lambda photo: transforms.Compose(steps)(photo, None)[0]


def original_predictor(name: str, height: int) -> Detector:
    """As the authors' evaluation runs their box models."""
    model, _, postprocessors = original(name)
    preprocess, batch = original_preprocessing(height), load_oracle().nested_tensor_from_tensor_list

    @torch.no_grad()
    def detect(photo: Image.Image) -> Any:
        outputs = model(batch([preprocess(photo)]))
        return postprocessors["bbox"](outputs, torch.tensor([photo.size[::-1]]))[0]

    return detect


@functools.cache
def _transformers(name: str, panoptic: bool) -> str:
    """The folder with the converted weights."""
    backbone = "timm" if "DC5" in name else None
    output = os.path.join(_FOLDER.name, f"{name}{'_panoptic' * panoptic}_transformers")
    convert(Request(checkpoint(name, panoptic), output, "transformers", dc5="DC5" in name, backbone=backbone))
    return output


def transformers_parts(name: str, height: int, panoptic: bool = False) -> tuple[Any, Any]:
    """transformers' processor and model, with its own defaults for everything."""
    import transformers

    kind = transformers.DetrForSegmentation if panoptic else transformers.DetrForObjectDetection
    transformers.utils.logging.disable_progress_bar()
    folder = _transformers(name, panoptic)
    size = {"shortest_edge": height, "longest_edge": MAX_SIZE}
    processor = transformers.DetrImageProcessor.from_pretrained(folder, size=size)
    return processor, kind.from_pretrained(folder).eval()


def transformers_predictor(name: str, height: int, dtype: torch.dtype = torch.float32) -> Detector:
    processor, model = transformers_parts(name, height)
    model = model.to(dtype)

    @torch.no_grad()
    def detect(photo: Image.Image) -> Any:
        inputs = processor(photo, return_tensors="pt")
        outputs = model(inputs["pixel_values"].to(dtype), pixel_mask=inputs["pixel_mask"])
        sizes = [photo.size[::-1]]
        return processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)[0]

    return detect


class _Plain(nn.Module):
    """The authors' box model as a function of one tensor, for a tracer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        padding = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool)
        outputs = self.model(load_oracle().NestedTensor(images, padding))
        return outputs["pred_logits"], outputs["pred_boxes"]


def openvino_predictor(name: str, size: tuple[int, int], threads: int) -> Detector:
    """OpenVINO on the graph of the authors' network, between their preprocessing and their postprocessing.

    size: (height, width), which the graph is fixed to, so that OpenVINO may make the most of it
    """
    import openvino  # type: ignore[import-untyped]

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, on branches that one size never takes
        model = openvino.convert_model(_Plain(original(name)[0]), example_input=torch.zeros(1, 3, *size))
    model.reshape([1, 3, *size])
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    preprocess, postprocess = original_preprocessing(size[0]), original(name)[2]["bbox"]

    def detect(photo: Image.Image) -> Any:
        logits, boxes = (torch.from_numpy(compiled_output) for compiled_output in run(preprocess(photo)))
        return postprocess({"pred_logits": logits, "pred_boxes": boxes}, torch.tensor([photo.size[::-1]]))[0]

    def run(image: Tensor) -> list[np.ndarray]:
        outputs = compiled(image[None].numpy())
        return [outputs[0], outputs[1]]

    return detect


def image_tensor(height: int, width: int) -> Tensor:
    """(3, H, W) uint8: blobs under noise."""
    return sample_image(height, width).mul(50).add(128).clamp(0, 255).byte()


def photograph(height: int, width: int) -> Image.Image:
    """The same as an RGB image."""
    return Image.fromarray(np.ascontiguousarray(image_tensor(height, width).permute(1, 2, 0).numpy()))
