"""Which checkpoint a training goes on from, where some are damaged or missing."""

import logging
import os
import zipfile

import pytest
import torch
from torch import nn

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.files import damage, load_file
from detr.engine.defaults import check_output_folder
from detr.engine.hooks import PeriodicCheckpointer
from detr.errors import InputError


def loop(folder):
    """A checkpointer of a model that has taken a step."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return DetrCheckpointer(model, str(folder), optimizer=optimizer)


def save(checkpointer, name, iteration):
    nn.init.constant_(checkpointer.model.weight, iteration)
    checkpointer.save(name, iteration=iteration)


def resumed(folder):
    """The iteration that a new process goes on from, and that of its weights."""
    checkpointer = loop(folder)
    extra = checkpointer.resume_or_load("", resume=True)
    assert (checkpointer.model.weight == extra["iteration"]).all()
    assert os.path.isfile(checkpointer.get_checkpoint_file())
    return extra["iteration"]


@pytest.fixture
def run(tmp_path):
    """The folder of a training that has ended after 10 iterations."""
    checkpointer = loop(tmp_path)
    for iteration in (4, 7):
        save(checkpointer, f"model_{iteration:07d}", iteration)
    save(checkpointer, "model_final", 9)
    return tmp_path


def in_a_tensor(path):
    content = path.read_bytes()
    at = content.index(torch.full((4,), 9.0).numpy().tobytes())
    path.write_bytes(content[:at] + b"\x11" * 16 + content[at + 16 :])


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.unlink(),
        in_a_tensor,
    ],
    ids=["truncated", "without the last byte", "empty", "zeros", "missing", "flipped"],
)
def test_a_damaged_last_one_falls_back_to_the_one_before(run, harm, caplog):
    harm(run / "model_final.pth")
    assert resumed(run) == 7
    (line,) = (record.getMessage() for record in caplog.records if "going on from" in record.getMessage())
    assert "model_final.pth" in line
    assert line.startswith(f"going on from {run}/model_0000007.pth, the newest checkpoint that is whole: ")
    assert "RuntimeError" not in line
    (run / "model_0000007.pth").write_bytes(b"PK")
    assert resumed(run) == 4
    assert loop(run).resume_or_load("", resume=False) == {}


def test_all_damaged_is_an_error_that_names_them(run):
    for path in run.glob("*.pth"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        InputError, match=r"no checkpoint to go on from.*final.*0000007.*0000004.*another OUTPUT_DIR"
    ) as error:
        loop(run).resume_or_load("", resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [None, b"", b"\0\0\0", b"\xff\xfe\0x"], ids=["missing", "empty", "zeros", "no text"]
)
def test_a_folder_without_last_checkpoint_is_not_empty(run, content, caplog):
    """The state after a kill between the first checkpoint and last_checkpoint."""
    (run / "last_checkpoint").unlink() if content is None else (run / "last_checkpoint").write_bytes(content)
    assert loop(run).has_checkpoint()
    assert resumed(run) == 9
    assert "last_checkpoint" in caplog.text
    with pytest.raises(InputError, match="holds the checkpoints of an earlier training"):
        check_output_folder(str(run))


def test_last_checkpoint_may_name_an_earlier_one(run, caplog):
    (run / "last_checkpoint").write_text("model_0000004.pth\n")
    with caplog.at_level(logging.WARNING):
        assert resumed(run) == 4
    assert "going on from" not in caplog.text


def test_the_newest_is_the_one_with_the_most_iterations(run):
    """A training that was made longer: model_final is of its first part. Weights alone are nothing to go on from."""
    save(loop(run), "model_0000011", 11)
    torch.save({"model": nn.Linear(4, 3).state_dict()}, run / "model_0000099.pth")
    (run / "last_checkpoint").unlink()
    assert resumed(run) == 11


def test_an_empty_folder_is_a_new_training(tmp_path):
    torch.save({"model": nn.Linear(4, 3).state_dict()}, tmp_path / "R-18.pth")
    assert not loop(tmp_path).has_checkpoint()
    assert loop(tmp_path / "none").get_checkpoint_file() == ""
    check_output_folder(str(tmp_path))


def test_any_flipped_bytes_are_refused_or_change_nothing(run, tmp_path):
    """Everywhere in the file: names, offsets, attributes, checksums and tensors."""
    whole = load_file(str(run / "model_final.pth"))
    content = (run / "model_final.pth").read_bytes()
    refused = []
    for i, at in enumerate(range(0, len(content), 4)):
        path = tmp_path / f"flipped_{i}.pth"  # a name each, since files are so small that they get the same time
        path.write_bytes(content[:at] + bytes(x ^ 255 for x in content[at : at + 4]) + content[at + 4 :])
        try:
            found = load_file(str(path))
        except InputError as error:
            refused.append(str(error))
        else:
            assert repr(found) == repr(whole)
        path.unlink()
    assert len(refused) > i / 3  # the rest is padding
    assert not [line for line in refused if "\n" in line]


def test_a_file_without_checksums_is_taken_as_it_is(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"a": torch.ones(3)}}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert not any(entry.CRC for entry in zipfile.ZipFile(tmp_path / "a.pth").infolist())
    assert damage(str(tmp_path / "a.pth")) is None
    assert torch.equal(load_file(str(tmp_path / "a.pth"))["model"]["a"], torch.ones(3))


class BadDisk(DetrCheckpointer):
    """Some of its files are not what was written."""

    damaged = ("model_0000001", "model_0000002")

    def save(self, name, **kwargs):
        super().save(name, **kwargs)
        if name in self.damaged:
            path = os.path.join(self.save_dir, f"{name}.pth")
            with open(path, "r+b") as file:
                file.truncate(500)


def test_the_last_whole_one_is_never_deleted(tmp_path, caplog):
    checkpointer = loop(tmp_path)
    checkpointer.__class__ = BadDisk
    hook = PeriodicCheckpointer(checkpointer, 1, max_to_keep=1, milestones=())
    hook.max_iter = 10
    left = []
    for iteration in range(4):
        hook.step(iteration)
        left.append(sorted(int(path.stem[-7:]) for path in tmp_path.glob("model_*.pth")))
    assert left == [[0], [0, 1], [0, 1, 2], [3]]
    assert caplog.text.count("no earlier checkpoint is deleted") == 2
