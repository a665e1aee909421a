import pytest
from PIL import Image

from detr.data.image_checks import check_images
from detr.errors import InputError
from tests.data.test_checks import entry


def test_good_images_pass(images):
    check_images([entry(path) for path in images])


def test_missing_images_are_counted(images):
    images[1].unlink()
    images[2].unlink()
    with pytest.raises(InputError, match=r"1\.jpg does not exist \(and 1 more of 4\): restore it, .* file names"):
        check_images([entry(path) for path in images])


def test_an_image_that_is_cut_off_is_found(images):
    whole = images[3].read_bytes()
    images[3].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cannot read the image .*3\.jpg \((?i:.*truncated)"):
        check_images([entry(path) for path in images])


@pytest.mark.parametrize("content", [b"", b"x", b"this is text"])
def test_a_file_that_is_no_image_is_found(images, content):
    images[2].write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read the image .*2\.jpg"):
        check_images([entry(path) for path in images])


def test_a_wrong_size_is_found(images):
    with pytest.raises(InputError, match=r"0\.jpg is 32 x 24 pixels .* says 24 x 32"):
        check_images([entry(images[0], size=(24, 32))])


def test_an_image_that_exif_turns_has_its_sides_swapped(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 24)).save(path, exif=exif)
    check_images([entry(path, size=(24, 32))])
    with pytest.raises(InputError, match="24 x 32 pixels"):
        check_images([entry(path, size=(32, 24))])
