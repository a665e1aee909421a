"""Files that appear whole or not at all."""

import errno
import os
import stat

import pytest

from detr.errors import DiskError, InputError, exit_with_one_line
from detr.whole_files import cannot_write, copy_whole, remove_leftovers, whole_file
from tests.disk import files_of_at_most


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path):
    """What is on the disk at that moment, and after the next start."""
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    writing = whole_file(str(path))
    file = writing.__enter__()
    file.write(b"half")
    file.flush()
    (leftover,) = (x for x in tmp_path.iterdir() if x != path)
    assert path.read_bytes() == b"old"
    (tmp_path / ".mine.part").touch()
    remove_leftovers(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [".mine.part", "model.pth"]
    leftover.touch()
    writing.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert sorted(os.listdir(tmp_path)) == [".mine.part", "model.pth"]
    assert path.read_bytes() == b"old"


def test_the_file_takes_its_place_with_the_usual_rights_and_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "page.txt")
    with whole_file(str(tmp_path / "link"), "w") as file:
        file.write("caf\N{LATIN SMALL LETTER E WITH ACUTE}")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "page.txt").read_bytes() == b"caf\xc3\xa9"
    (tmp_path / "usual").touch()
    modes = {stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ("link", "usual")}
    assert len(modes) == 1


@pytest.mark.parametrize("write", [lambda path: _write(path), lambda path: copy_whole(f"{path}.source", path)])
def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, write):
    path = tmp_path / "model.pth"
    path.write_bytes(b"old")
    (tmp_path / "model.pth.source").write_bytes(bytes(20000))
    with (
        files_of_at_most(8000),
        pytest.raises(DiskError, match=r"cannot write \S+model\.pth \(File too large; [\d,]+ of"),
    ):
        write(str(path))
    assert path.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["model.pth", "model.pth.source"]


def _write(path):
    with whole_file(path) as file:
        file.write(bytes(20000))


def test_a_disk_error_behind_another_one_is_a_disk_error(tmp_path):
    error = RuntimeError("unexpected pos 64 vs 0")  # torch's own
    error.__context__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskError, match="No space left"), cannot_write("here"):
        raise error


def test_a_place_that_cannot_be_written_is_a_mistake_of_the_user(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="name another place") as error, whole_file(str(tmp_path / "file" / "below")):
        pass
    assert not isinstance(error.value, DiskError)


def test_a_script_ends_with_a_status_of_its_own(capsys):
    with pytest.raises(SystemExit) as end, exit_with_one_line():
        raise RuntimeError("a rank has failed:\nTraceback\ndetr.errors.DiskError: cannot write x (full)")
    assert end.value.code == 74
    assert capsys.readouterr().err == "error: cannot write x (full)\n"
