"""``detect.py``, which is written beside an ONNX or OpenVINO graph: it detects without Detectron2 and without torch."""

import os
from typing import Any

from detr.export.metadata import KEYS

NAME = "detect.py"

# The lines in which the two differ: they open the graph and read its metadata.
_OPEN = {
    "onnx": """\
network = onnxruntime.InferenceSession(Path(__file__).with_name("network.onnx"), providers=["CPUExecutionProvider"])
names, things, threshold, how = (json.loads(network.get_modelmeta().custom_metadata_map[key]) for key in KEYS)""",
    "openvino": """\
graph = openvino.Core().read_model(Path(__file__).with_name("network.xml"))
names, things, threshold, how = (json.loads(graph.get_rt_info(["detr", key]).value) for key in KEYS)
network = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})""",
}
_RUN = {
    "onnx": 'network.run(["logits", "boxes"], {"images": padded, "sizes": sizes})',
    "openvino": '(network([padded, sizes])[name] for name in ("logits", "boxes"))',
}
_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}

_SCRIPT = '''\
"""Detects objects: python detect.py photo.jpg prints class, score and box (x1 y1 x2 y2 in pixels), a line each.

It needs numpy, Pillow and {package}, and nothing else but the graph beside it.
"""

import json
import sys
from pathlib import Path

import numpy as np
import {package}
from PIL import Image, ImageOps

KEYS = {keys}
{open}

for path in sys.argv[1:] or sys.exit(__doc__):
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    (width, height), shorter = photo.size, min(photo.size)
    largest = max(round(how["max_size"] * shorter / max(photo.size)), 1)  # so that the longer side has max_size
    size = min(how["min_size"], largest) if how["min_size"] else shorter
    new = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    pixels = np.asarray(photo.resize(new, Image.Resampling.BILINEAR), np.float32)  # (H, W, 3)
    pixels = pixels if how["channels"] == "RGB" else pixels[..., ::-1]
    image = (pixels / np.float32(255) - np.float32(how["mean"])) / np.float32(how["std"])
    sides = [-(-(how["square_size"] or side) // how["multiple"]) * how["multiple"] for side in image.shape[:2]]
    padding = [(0, sides[0] - image.shape[0]), (0, sides[1] - image.shape[1]), (0, 0)]
    padded = np.pad(image, padding).transpose(2, 0, 1)[None]
    sizes = np.array([image.shape[:2]], np.int64)
    logits, boxes = {run}
    odds = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
    scores = (odds / odds.sum(-1, keepdims=True))[:, :-1]  # the last class is no-object
    for query in np.argsort(-scores.max(-1)):
        score, label = scores[query].max(), scores[query].argmax()
        if score >= (0.5 if threshold is None else threshold) and things[label]:
            x, y, w, h = boxes[0, query] * [width, height, width, height]  # center, width and height
            corners = " ".join(f"{{value:.1f}}" for value in (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            print(names[label] if names else label, f"{{score:.3f}}", corners, sep="\\t")
'''


def write_script(format: str, metadata: dict[str, Any], folder: str) -> None:
    """Writes ``detect.py`` into the folder, where the graph is one of ONNX or OpenVINO that takes photos.

    metadata: that of the graph, which the script reads there
    """
    if format not in _OPEN or metadata["preprocessing"]["channels"] not in ("RGB", "BGR"):
        return
    keys = "({})".format(", ".join(f'"{key}"' for key in KEYS))
    text = _SCRIPT.format(package=_PACKAGES[format], open=_OPEN[format], run=_RUN[format], keys=keys)
    with open(os.path.join(folder, NAME), "w", encoding="utf-8") as file:
        file.write(text)
