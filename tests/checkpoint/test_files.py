import argparse
import os

import pytest
import torch

from detr.checkpoint.files import load_file, save_file, save_text
from detr.errors import InputError
from tests.checkpoint.samples import Mkdir


def test_a_training_checkpoint_of_the_original_loads(tmp_path):
    path = str(tmp_path / "checkpoint.pth")
    torch.save({"model": {"a": torch.ones(2)}, "args": argparse.Namespace(lr=1e-4), "epoch": 3}, path)
    content = load_file(path)
    assert torch.equal(content["model"]["a"], torch.ones(2))
    assert content["args"].lr == 1e-4


def test_a_malicious_file_is_not_run(tmp_path):
    path, target = str(tmp_path / "evil.pth"), tmp_path / "created"
    torch.save({"model": Mkdir(str(target))}, path)
    with pytest.raises(InputError, match=r"evil\.pth .* asks for the class posix\.mkdir"):
        load_file(path)
    assert not target.exists()


CUT = object()  # stands for the first half of a checkpoint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.pth"),
        (b"hello", r"bad\.pth"),
        (b"PK\x03\x04 cut off", r"bad\.pth"),
        (CUT, r"bad\.pth is damaged: its end is missing"),
        ([1, 2], "holds a list, not a checkpoint's dict"),
    ],
    ids=["empty", "text", "zip", "truncated", "list"],
)
def test_bad_files_are_reported_in_one_line(tmp_path, content, message):
    path = tmp_path / "bad.pth"
    torch.save({"model": {"a": torch.ones(1000)}} if content is CUT else content, path)
    if content is CUT:
        path.write_bytes(path.read_bytes()[:2000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_file(str(path))
    assert "\n" not in str(error.value)


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.pth"
    save_file({"a": 1}, str(path))
    with pytest.raises(Exception, match=r"pickle|local object"):
        save_file({"a": lambda: None}, str(path))
    assert load_file(str(path)) == {"a": 1}
    assert os.listdir(tmp_path) == ["model.pth"]


def test_a_text_is_written_whole_or_not_at_all(tmp_path):
    save_text("caf\N{LATIN SMALL LETTER E WITH ACUTE}", str(tmp_path / "new" / "page.html"))
    assert (tmp_path / "new" / "page.html").read_bytes() == b"caf\xc3\xa9"
    with pytest.raises(InputError, match="cannot write"):
        save_text("text", str(tmp_path / "new" / "page.html" / "below.html"))
    with pytest.raises(UnicodeEncodeError):
        save_text("\udc00", str(tmp_path / "new" / "page.html"))
    assert (tmp_path / "new" / "page.html").read_bytes() == b"caf\xc3\xa9"
    assert os.listdir(tmp_path / "new") == ["page.html"]
