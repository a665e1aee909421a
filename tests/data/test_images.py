"""Image files of every kind: what the network sees is what a person sees."""

import io
import struct

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image

from detr.data.image_checks import check_images
from detr.data.images import read_image
from detr.errors import InputError
from tests.data.test_checks import entry

FORMATS = ("RGB", "BGR", "L", "YUV-BT.601")
# 16 bits -> 8, by hand: v / 257, rounded
SIXTEEN = np.array([[0, 128, 129, 257], [32768, 32896, 65407, 65535], [300, 5000, 60000, 40000]], dtype=np.uint16)
EIGHT = np.array([[0, 0, 1, 1], [128, 128, 255, 255], [1, 19, 233, 156]], dtype=np.uint8)
TURNED = {1: EIGHT, 3: EIGHT[::-1, ::-1], 6: np.rot90(EIGHT, -1), 8: np.rot90(EIGHT)}  # by EXIF orientation


def save(path, pixels, orientation=1):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return str(path)


def patched(path, tag, value):
    """The TIFF with another value of a tag that holds one short."""
    content = path.read_bytes()
    assert content.count(struct.pack("<HHI", tag, 3, 1)) == 1
    start = content.index(struct.pack("<HHI", tag, 3, 1)) + 8
    path.write_bytes(content[:start] + struct.pack("<H", value) + content[start + 2 :])
    return str(path)


@pytest.mark.parametrize("orientation", sorted(TURNED))
@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("jp2", "<u2")])
def test_16_bits_are_scaled_and_upright(tmp_path, suffix, dtype, orientation):
    if suffix == "jp2" and orientation != 1:
        pytest.skip("PIL writes no EXIF there")
    path = save(tmp_path / f"x.{suffix}", SIXTEEN.astype(dtype), orientation)
    expected = TURNED[orientation]
    np.testing.assert_array_equal(read_image(path, "L"), expected[..., None])
    check_images([entry(path, size=expected.shape[::-1])])


@pytest.mark.parametrize("image_format", FORMATS)
def test_16_bits_are_seen_as_the_8_that_they_stand_for(tmp_path, image_format):
    sixteen, eight = save(tmp_path / "16.png", SIXTEEN), save(tmp_path / "8.png", EIGHT)
    expected = detection_utils.read_image(eight, image_format)
    found = read_image(sixteen, image_format)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_16_bits_in_pils_mode_of_32(tmp_path):
    """As versions of PIL before 11.3 open a PNG, and all of them a PGM."""
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5\n4 3\n65535\n" + SIXTEEN.astype(">u2").tobytes())
    with Image.open(path) as image:
        assert image.mode == "I"
    np.testing.assert_array_equal(read_image(str(path), "L"), EIGHT[..., None])
    check_images([entry(path, size=(4, 3))])


def test_12_bits_are_scaled_by_their_own_range(tmp_path):
    save(tmp_path / "x.tif", np.full((2, 4), 0xFFFF, dtype=np.uint16))
    path = patched(tmp_path / "x.tif", tag=258, value=12)
    np.testing.assert_array_equal(read_image(path, "L"), np.full((2, 4, 1), 255))


def test_16_bits_of_a_tiff_whose_white_is_zero(tmp_path):
    save(tmp_path / "x.tif", SIXTEEN)
    path = patched(tmp_path / "x.tif", tag=262, value=0)
    np.testing.assert_array_equal(read_image(path, "L"), 255 - EIGHT[..., None])


def of_mode(mode):
    noise = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    if mode == "PA":
        return Image.fromarray(noise).quantize(16).convert("PA")
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        channels = 4 if mode == "CMYK" else 3
        return Image.frombytes(mode, (16, 12), noise[..., :channels].tobytes())
    return Image.fromarray(noise if mode in ("LA", "RGBA") else noise[..., :3]).convert(mode)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((mode, "tif") for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")),
        *((mode, "jpg") for mode in ("L", "RGB", "CMYK", "YCbCr")),
        *((mode, "webp") for mode in ("L", "RGB", "RGBA", "HSV")),
        *((mode, "gif") for mode in ("1", "L", "P")),
    ],
)
def test_8_bits_stay_as_they_are(tmp_path, mode, suffix, image_format):
    path = str(tmp_path / f"x.{suffix}")
    of_mode(mode).save(path)
    check_images([entry(path, size=(16, 12))])
    if (mode, image_format) == ("LAB", "L"):  # PIL cannot convert it
        with pytest.raises(InputError, match=r"x\.tif .*conversion from LAB"):
            read_image(path, image_format)
        return
    expected = detection_utils.read_image(path, image_format)
    found = read_image(path, image_format)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_palette_with_a_transparent_color_stays_as_it_is(tmp_path):
    path = str(tmp_path / "x.png")
    of_mode("P").save(path, transparency=3)
    np.testing.assert_array_equal(read_image(path, "RGB"), detection_utils.read_image(path, "RGB"))


@pytest.mark.parametrize("orientation", sorted(TURNED))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_with_an_exif_orientation_are_turned_once(tmp_path, suffix, orientation):
    """PIL turns a TIFF itself while it loads; to turn it again would move every object."""
    path = save(tmp_path / f"x.{suffix}", EIGHT, orientation)
    np.testing.assert_array_equal(read_image(path, "L"), TURNED[orientation][..., None])
    check_images([entry(path, size=TURNED[orientation].shape[::-1])])


@pytest.mark.parametrize("start", [b"II", b"XX"])
def test_a_damaged_exif_is_no_reason_to_refuse_an_image(tmp_path, start):
    """Its orientation is a word, or nothing of it can be read."""
    path = tmp_path / "x.jpg"
    entries = struct.pack("<HIHHHI4sI", 42, 8, 1, 0x0112, 2, 2, b"a\0\0\0", 0)
    Image.fromarray(EIGHT).save(path, exif=b"Exif\0\0" + start + entries)
    check_images([entry(path, size=(4, 3))])
    assert read_image(str(path), "RGB").shape == (3, 4, 3)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (np.int32, r"x\.tif has integer pixels of 32 bits or with a sign \(mode I\), .*convert it to 8 or 16 bits"),
        (np.float32, r"x\.tif has floating-point pixels \(mode F\), .*or override DetrDatasetMapper\.read"),
    ],
)
def test_pixels_of_no_known_range_are_refused_before_training_and_in_it(tmp_path, dtype, message):
    path = save(tmp_path / "x.tif", SIXTEEN.astype(dtype))
    with pytest.raises(InputError, match=message):
        check_images([entry(path, size=(4, 3))])
    with pytest.raises(InputError, match=message):
        read_image(path, "RGB")


def test_a_tiff_that_pil_cannot_open_is_found_before_training(tmp_path):
    """Three channels of 32 bits."""
    content = io.BytesIO()
    Image.new("RGB", (4, 3)).save(content, "TIFF")
    path = tmp_path / "x.tif"
    path.write_bytes(content.getvalue().replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 32, 32, 32)))
    with pytest.raises(InputError, match=r"cannot read the image .*x\.tif"):
        check_images([entry(path, size=(4, 3))])


@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "bmp", "gif", "jp2"])
def test_an_image_that_is_cut_off_is_found_before_training_and_in_it(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    check_images([entry(path, size=(64, 64))])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 3 // 4])
    with pytest.raises(InputError, match=rf"cannot read the image .*x\.{suffix}"):
        check_images([entry(path, size=(64, 64))])
    with pytest.raises(InputError, match=rf"cannot read the image .*x\.{suffix}"):
        read_image(str(path), "RGB")
