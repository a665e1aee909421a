"""Image files, as training checks and reads them and as inference does; held to the pixels that they were made of."""

import functools
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from detr.data.image_checks import check_images
from detr.data.images import read_image, size_in_file
from detr.errors import InputError
from detr.inference import image_inputs
from tests.fuzz.outcome import REFUSED, RIGHT, Kind, check_line

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"]
FORMATS = ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "PPM"]
LOSSY = ("JPEG", "WEBP", "GIF")
SIZES = [(1, 1), (1, 20_000), (20_000, 1), (2, 3), (33, 17), (64, 64), (300, 200)]  # width and height
# The upright image of the stored one (H, W, C), by EXIF's orientation
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x.swapaxes(0, 1)[::-1, ::-1],
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
# What is no image: a name, and what lies there
PLACES = ["missing", "empty", "text", "json", "folder", "pipe", "device", "link to itself", "no permission"]


def stored(case: dict[str, Any]) -> Image.Image:
    """The image before it is written, in one of PIL's modes."""
    width, height = case["size"]
    rng = np.random.default_rng(case["seed"])
    mode = case["mode"]
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if mode in ("LA", "PA"):
        return image.convert("RGBA").convert(mode)
    if mode == "LAB":
        return Image.merge("LAB", image.split())
    return image.convert(mode)


def encoded(case: dict[str, Any]) -> bytes | None:
    """The file; None where the format has no such images."""
    image, file = stored(case), io.BytesIO()
    exif = Image.Exif()
    options: dict[str, Any] = {}
    if case["orientation"] and case["format"] in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif[0x0112] = case["orientation"]
        options["exif"] = exif
    if case["frames"] > 1 and case["format"] in ("GIF", "TIFF", "WEBP", "PNG"):
        options |= {"save_all": True, "append_images": [Image.new(image.mode, image.size)] * (case["frames"] - 1)}
    try:
        image.save(file, case["format"], **options)
    except (OSError, ValueError, KeyError, SystemError, struct.error):
        return None
    return file.getvalue()


@functools.cache
def bomb(side: int, kind: str) -> bytes:
    """A small file that says that it has side x side pixels, and holds the first of them."""
    if kind == "BMP":
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compressobj(1)
    data = rows.compress(bytes(10_000_000)) + rows.flush()
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def damaged(data: bytes, case: dict[str, Any]) -> bytes:
    place = int(case["at"] * len(data))
    if case["damage"] == "cut":
        return data[:place]
    if case["damage"] == "flip":
        return data[:place] + bytes([data[place] ^ (1 << case["seed"] % 8)]) + data[place + 1 :]
    if case["damage"] == "zeros":
        return data[:place] + bytes(min(64, len(data) - place)) + data[place + 64 :]
    return data


def run(case: dict[str, Any], folder: Path) -> str:
    if case["place"]:
        return _read_all(_make_place(folder, case["place"]))
    path = folder / f"image.{case['format'].lower()}"
    if case["bomb"]:
        path.write_bytes(bomb(case["bomb"], case["format"]))
        return _read_all(path)
    data = encoded(case)
    if data is None:
        return RIGHT
    path.write_bytes(damaged(data, case))
    expected = None
    if case["damage"] in ("", "cut"):
        with Image.open(io.BytesIO(data)) as whole:
            whole.load()
            # PIL itself turns a TIFF.
            turn = UPRIGHT.get(whole.getexif().get(0x0112, 1) if case["format"] != "TIFF" else 1, UPRIGHT[1])
            if whole.mode.startswith("I;16") or (whole.mode == "I" and case["format"] in ("PNG", "PPM")):
                gray = np.round(np.asarray(whole).astype(float) / 65535 * 255)
                expected = turn(np.repeat(gray[..., None], 3, axis=2))
            elif whole.mode in ("I", "F"):
                expected = "refused"
            else:
                expected = turn(np.asarray(whole.convert("RGB")))
                original = stored(case).convert("RGB") if case["mode"] not in ("LAB", "HSV", "PA") else whole
                if case["format"] not in LOSSY and case["mode"] in ("L", "RGB", "1") and case["format"] != "TIFF":
                    assert (turn(np.asarray(original)) == expected).all(), "the test's own reading"
    return _read_all(path, expected, may_be_refused=bool(case["damage"]))


def _read_all(path: Path, expected: Any = None, may_be_refused: bool = True) -> str:
    """Inference, mapper and checks must agree, and have the pixels; ``expected`` is "refused", (H, W, 3) or None."""
    results: list[Any] = []
    for read in (lambda: image_inputs.read(str(path), "RGB"), lambda: read_image(str(path), "RGB")):
        try:
            results.append(read())
        except InputError as error:
            results.append(check_line(error, str(path)))
    if isinstance(results[0], str) or isinstance(results[1], str):
        assert [isinstance(x, str) for x in results] == [True, True], f"{path.name} is read once of twice"
        assert may_be_refused or isinstance(expected, str), f"{path.name} is whole and refused"
        _check(path, None)
        return REFUSED
    assert (results[0] == results[1]).all(), "inference and training read other pixels"
    assert not isinstance(expected, str), "pixels of an unknown range are read"
    if expected is not None:
        assert results[0].shape == expected.shape, f"{results[0].shape}, not {expected.shape}"
        assert np.abs(results[0].astype(int) - expected).max() <= 1, "other pixels than the file's"
    _check(path, results[0].shape[:2])
    return RIGHT


def _check(path: Path, shape: tuple[int, int] | None) -> None:
    """What a training does before it starts."""
    size = size_in_file(str(path))
    assert shape is None or size == shape[::-1], f"the header says {size}, the image is {shape}"
    height, width = shape or (10, 10)
    refusal = None
    try:
        check_images([{"file_name": str(path), "height": height, "width": width}])
    except InputError as error:
        refusal = error
    if refusal is not None:
        check_line(refusal, str(path))
        assert shape is None, f"refused before the training, and read by it: {refusal}"
    else:
        # Of a JPEG that has its end only the header is read there.
        assert shape is not None or path.suffix == ".jpeg", "passes the check, and cannot be read"


def _make_place(folder: Path, kind: str) -> Path:
    path = folder / f"{kind.replace(' ', '_')}.png"
    if kind == "device":
        return Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind != "missing":
        path.write_bytes({"text": b"no image", "json": b"{}"}.get(kind, b""))
        path.chmod(0 if kind == "no permission" else 0o644)
    return path


_DRAWN = {
    "mode": st.sampled_from(MODES),
    "format": st.sampled_from(FORMATS),
    "size": st.sampled_from(SIZES),
    "seed": st.integers(0, 255),
    "orientation": st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535]),
    "frames": st.sampled_from([1, 1, 3]),
    "damage": st.sampled_from(["", "", "cut", "flip", "zeros"]),
    "at": st.floats(0, 0.999),
    "place": st.just(""),
    "bomb": st.just(0),
}
IMAGES = Kind(
    st.one_of(
        *[st.fixed_dictionaries(_DRAWN)] * 6,
        st.fixed_dictionaries({**_DRAWN, "place": st.sampled_from(PLACES)}),
        st.fixed_dictionaries(
            {
                **_DRAWN,
                "bomb": st.sampled_from([14_000, 60_000, 2**31 - 1]),
                "format": st.sampled_from(["PNG", "BMP"]),
            }
        ),
    ),
    run,
)
