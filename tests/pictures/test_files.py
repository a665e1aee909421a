"""Files of pictures."""

import errno

import pytest

from detr.errors import InputError
from detr.pictures.files import write_whole


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"before")

    def fail(new):
        new.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"sheet\.png cannot be written \(No space left on device\)"):
        write_whole(path, fail)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
