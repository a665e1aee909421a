"""Images and videos as streams: read one after the other, detected in batches, never all in memory."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detr.errors import InputError
from detr.inference import image_inputs
from detr.inference.predictor import Predictor
from detr.modeling.attention_maps import Point


@dataclass(frozen=True)
class Item:
    """An image of a stream.

    number: of the image among the inputs, or of the frame in its video, from 1
    file_name: of the image, or of the video
    image: (H, W, 3) uint8, RGB
    seconds: of a frame, since the beginning of its video; None for an image
    """

    number: int
    file_name: str
    image: np.ndarray
    seconds: float | None = None


def read_images(paths: Iterable[str], skipped: Callable[[str, InputError], None]) -> Iterator[Item]:
    """The images behind paths and URLs; ``skipped`` is called with one that cannot be read."""
    for number, path in enumerate(paths, start=1):
        try:
            image = image_inputs.read(path, "RGB")
        except InputError as error:
            skipped(path, error)
            continue
        yield Item(number, path, image)


def read_frames(frames: Iterable[tuple[np.ndarray, float]], file_name: str) -> Iterator[Item]:
    """The frames of a ``VideoReader`` or of ``camera_frames``."""
    for number, (image, seconds) in enumerate(frames, start=1):
        yield Item(number, file_name, image, seconds)


def detect(predictor: Predictor, items: Iterable[Item], tile: int = 0) -> Iterator[tuple[Item, dict[str, Any]]]:
    """Each item with its output as ``Predictor.predict`` gives it, in the same order.

    tile: the side of the tiles that images are cut into, in pixels (see ``predict_in_tiles``); 0 for whole images
    """
    if tile:
        from detr.inference.tiles import predict_in_tiles  # an extra

        for item in items:
            yield item, {"instances": predict_in_tiles(predictor, item.image, tile)}
        return
    waiting: collections.deque[Item] = collections.deque()

    def images() -> Iterator[np.ndarray]:
        for item in items:
            waiting.append(item)
            yield item.image

    for output in predictor.predict(images(), color="RGB"):
        yield waiting.popleft(), output


def detect_with_attention(
    predictor: Predictor, items: Iterable[Item], points: Sequence[Point] | None = None
) -> Iterator[tuple[Item, dict[str, Any]]]:
    """As ``detect``, one image at a time; each output has an ``attention`` besides (see ``Predictor.attention``).

    points: x and y in pixels of every image, or None for the centers of the best objects
    """
    for item in items:
        try:
            found = predictor.attention(item.image, color="RGB", points=points)
        except InputError as error:
            raise InputError(f"{item.file_name}: {error}") from error
        yield item, {**found.output, "attention": found}
