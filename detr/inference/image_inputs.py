"""What a user calls an image: a path, a URL, an image of PIL's, an array."""

import glob
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from detr.data.images import check_regular, to_pixels
from detr.errors import InputError

ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray

COLORS = ("RGB", "BGR")
SECONDS = 30  # to wait for an answer of a web server
# What a folder is searched for. A file that is named is read whatever its suffix is.
SUFFIXES = frozenset({".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def is_image(x: Any) -> bool:
    """Whether ``x`` is one image, and not several of them."""
    return isinstance(x, (str, os.PathLike, Image.Image)) or (isinstance(x, np.ndarray) and x.ndim in (2, 3))


def describe(image: ImageInput) -> str:
    """The image's name in a message."""
    return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"the {type(image).__name__}"


def read(image: ImageInput, image_format: str, color: str | None = None) -> np.ndarray:
    """The image as evaluation reads it: (H, W, C) uint8, upright, in ``image_format`` (see ``read_image``).

    image: a path, a URL, an image of PIL's, or an array (H, W, 3) uint8
    image_format: as INPUT.FORMAT
    color: the order of an array's channels, "RGB" or "BGR" (OpenCV's); of no account for the others

    A URL is fetched anew each time. Raises InputError that names the image, where it cannot be read, and for an array
    of another kind or without ``color``.
    """
    if isinstance(image, np.ndarray):
        return _of_array(image, image_format, color)
    try:
        if isinstance(image, Image.Image):
            return to_pixels(image, image_format, describe(image))
        if not isinstance(image, (str, os.PathLike)):
            raise InputError(
                f"a {type(image).__name__} is no image: give a path, a URL, an image of PIL's or an array (H, W, 3)"
            )
        path = os.fspath(image)
        check_regular(path)
        with _open(path) as file, Image.open(file) as opened:
            return to_pixels(opened, image_format, path)
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{describe(image)} is no image of a kind that Pillow reads") from error
    except Exception as error:  # PIL and the path handlers raise many kinds
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise InputError(f"cannot read the image {describe(image)} ({' '.join(str(reason).split())})") from error


def _open(path: str) -> IO[bytes]:
    if not path.startswith(("http://", "https://")):
        return PathManager.open(path, "rb")  # type: ignore[no-any-return]
    # Detectron2's handler keeps files by their path on the server, whatever the server is: another one's image, or a
    # camera's picture of yesterday, would be taken.
    try:
        with urlopen(Request(path, headers={"User-Agent": "detr"}), timeout=SECONDS) as answer:
            return io.BytesIO(answer.read())
    except URLError as error:
        if hasattr(error, "close"):
            error.close()
        raise InputError(f"cannot download {path} ({error.reason}): check the address and the network") from error


def _of_array(image: np.ndarray, image_format: str, color: str | None) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(
            f"an array of shape {image.shape} and type {image.dtype} is no image: it must be (H, W, 3) of uint8"
        )
    if color not in COLORS:
        raise InputError(
            f'color is {color!r}, which does not tell the order of an array\'s channels: say color="RGB", or '
            'color="BGR" for an image that OpenCV has read'
        )
    if image_format in COLORS:
        return image if color == image_format else image[:, :, ::-1]
    rgb = image if color == "RGB" else image[:, :, ::-1]
    return to_pixels(Image.fromarray(np.ascontiguousarray(rgb)), image_format, "an array")


def find_images(patterns: Sequence[str]) -> list[str]:
    """The images behind files, folders, URLs and patterns such as 'photos/*.jpg', each once, in this order.

    In a folder, and not below it, files are taken by their suffix. A file that is named is taken whatever it is, and
    whether it is there. Raises InputError for a folder and for a pattern without images.
    """
    found: list[str] = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            paths = sorted(str(path) for path in Path(pattern).iterdir() if _has_suffix(path))
            if not paths:
                raise InputError(f"the folder {pattern} holds no images ({', '.join(sorted(SUFFIXES))})")
        elif os.path.exists(pattern) or "://" in pattern or not glob.has_magic(pattern):
            paths = [pattern]
        else:
            matches = sorted(glob.glob(pattern, recursive=True))
            paths = [path for path in matches if os.path.isfile(path)]
            if not paths:
                raise InputError(f"nothing matches {pattern!r}: check the pattern")
        found += paths
    return list(dict.fromkeys(found))


def _has_suffix(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()
