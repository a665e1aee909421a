"""Image files of every kind as the network takes them: upright, in INPUT.FORMAT, black at 0 and white at 255."""

import os

import numpy as np
from detectron2.data import detection_utils
from detectron2.utils.file_io import PathManager
from PIL import Image

from detr.errors import InputError

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of a TIFF
WHITE_IS_ZERO = 0  # a value of PHOTOMETRIC
EXIF_ORIENTATION, SIDEWAYS = 0x0112, range(5, 9)  # tag, and its values that turn an image by 90 degrees

# Of INPUT.FORMAT: those of PIL that have a value of 0..255 for each channel, and Detectron2's own.
FORMATS = ("RGB", "BGR", "L", "YUV-BT.601", "RGBA", "CMYK", "YCbCr", "LAB", "HSV")
UNKNOWN_RANGES = {"I": "integer pixels of 32 bits or with a sign", "F": "floating-point pixels"}  # by PIL's mode


def read_image(path: str, image_format: str) -> np.ndarray:
    """The image (H, W, C) uint8, upright (EXIF); YUV-BT.601 is float, as Detectron2 defines it.

    image_format: as INPUT.FORMAT

    Images of 8 bits are what Detectron2's ``read_image`` makes of them. Gray images of 16 bits are scaled from the
    range of the file's format: 65535 is white, or 4095 in a TIFF of 12 bits. Raises InputError that names the file
    and what to do, where it cannot be read and where the range of its pixels is not known.
    """
    try:
        check_regular(path)
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            return to_pixels(image, image_format, path)
    except InputError:
        raise
    except Exception as error:  # PIL and the path handlers raise many kinds
        raise InputError(
            f"cannot read the image {path} ({type(error).__name__}: {error}): restore the file or take it out of "
            "the annotations"
        ) from error


def check_regular(path: str) -> None:
    """Raises InputError for a pipe or a device, of which reading would have no end. Other problems are left to it."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path} is a pipe or a device, and not a file: name a file")


def to_pixels(image: Image.Image, image_format: str, path: str) -> np.ndarray:
    """The pixels of an open image, as ``read_image`` returns them; path: its name in an error.

    Raises InputError where the range of its pixels is not known and for an unknown ``image_format``, and what PIL
    raises for a damaged file.
    """
    if image_format not in FORMATS:
        raise InputError(f"INPUT.FORMAT is {image_format!r}: it must be one of {', '.join(FORMATS)}")
    problem = range_problem(path, image)
    if problem:
        raise InputError(problem)
    image.load()  # before its EXIF is read: PIL itself turns a TIFF, while it loads
    upright = _scale_to_8_bits(detection_utils._apply_exif_orientation(image), image)
    return detection_utils.convert_PIL_to_numpy(upright, image_format)  # type: ignore[no-any-return]


def range_problem(path: str, image: Image.Image) -> str | None:
    """The problem of an open image for whose pixels nobody knows black and white; None where there is none."""
    if image.mode not in UNKNOWN_RANGES or _has_16_bits(image):
        return None
    return (
        f"the image {path} has {UNKNOWN_RANGES[image.mode]} (mode {image.mode}), whose values for black and white are "
        "not known: convert it to 8 or 16 bits, or override DetrDatasetMapper.read"
    )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an open image as ``read_image`` gives it."""
    if image.format == "TIFF":
        image.load()  # PIL turns a TIFF itself
        return image.size
    orientation = image.getexif().get(EXIF_ORIENTATION)
    return image.size[::-1] if orientation in SIDEWAYS else image.size


def size_in_file(path: str) -> tuple[int, int] | None:
    """(width, height) of an image file as ``read_image`` gives it; None where it cannot be opened."""
    try:
        check_regular(path)
        # Given a path, PIL maps a TIFF that it should turn into memory, and turns it twice.
        with open(path, "rb") as file, Image.open(file) as image:
            return upright_size(image)
    except Exception:  # PIL raises many kinds; ``check_images`` says what is wrong
        return None


def _has_16_bits(image: Image.Image) -> bool:
    """Whether an open image is gray with 16 bits, as files hold them or, in mode I, as older versions of PIL do."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _scale_to_8_bits(image: Image.Image, source: Image.Image) -> Image.Image:
    """A gray image of 16 bits with 8, rounded; others as they are. source: the image as it was opened."""
    if not _has_16_bits(source):
        return image
    tags = getattr(source, "tag_v2", {})  # of a TIFF
    white = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    pixels = np.asarray(image).astype(np.uint32)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        pixels = white - pixels
    return Image.fromarray(((pixels * 255 + white // 2) // white).astype(np.uint8))
