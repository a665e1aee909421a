import argparse
import os

import pytest
import torch

from detr.checkpoint.files import load_file, save_file
from detr.errors import InputError
from tests.checkpoint.samples import Mkdir


def test_a_training_checkpoint_of_the_original_loads(tmp_path):
    path = str(tmp_path / "checkpoint.pth")
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, path)
    content = load_file(path)
    assert torch.equal(content["model"]["a"], torch.ones(2))
    assert content["args"].lr == 1e-4


def test_a_malicious_file_is_refused_and_does_nothing(tmp_path):
    path, target = str(tmp_path / "evil.pth"), tmp_path / "created"
    torch.save({"model": Mkdir(str(target))}, path)
    with pytest.raises(InputError, match=r"evil\.pth is refused, because it asks for the class posix\.mkdir"):
        load_file(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_files_get_one_line(tmp_path, content):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.pth") as error:
        load_file(str(path))
    assert "\n" not in str(error.value)


def test_a_truncated_file_gets_one_line(tmp_path):
    path = tmp_path / "cut.pth"
    torch.save({"model": {"a": torch.ones(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.pth cannot be read"):
        load_file(str(path))


def test_a_file_of_another_type_is_told(tmp_path):
    path = str(tmp_path / "list.pth")
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds a list, not a checkpoint's dict"):
        load_file(path)


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    save_file({"a": 1}, str(path))
    with pytest.raises(Exception, match="pickle"):
        save_file({"a": lambda: None}, str(path))
    assert load_file(str(path)) == {"a": 1}
    assert os.listdir(tmp_path) == ["model.pth"]
