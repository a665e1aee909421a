"""Checkpoints of a tiny model, damaged or saved in other ways: refused, or with all weights of the whole file."""

import functools
import io
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from hypothesis import strategies as st

from detr.checkpoint import DetrCheckpointer
from detr.engine.defaults import load_config
from detr.errors import InputError
from tests.conftest import QUICKSTART, TINY, as_opts
from tests.fuzz.outcome import RIGHT, Kind, check_line

ODD_CONTENTS: list[Any] = [{}, [], None, 3, "text", {"model": None}, {"model": {}}, {"model": {"x": 1}}, {1: 2},
                           {"model": {"a.weight": [1, 2]}}, {"model": [torch.zeros(2)]},
                           {None: torch.zeros(2)}]  # fmt: skip


SAVED_ANEW = ["old format", "double precision", "other keys", "other order"]


class _Asks:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('the code in a checkpoint was run')",)


@functools.cache
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(load_config(str(QUICKSTART), as_opts(TINY)))


@functools.cache
def whole() -> tuple[bytes, dict[str, torch.Tensor]]:
    """A checkpoint as a training saves it, and its weights."""
    with tempfile.TemporaryDirectory() as folder:
        DetrCheckpointer(model(), folder).save("model", iteration=7)
        data = Path(folder, "model.pth").read_bytes()
    return data, {key: value.clone() for key, value in model().state_dict().items()}


def damaged(case: dict[str, Any]) -> bytes:
    data, _ = whole()
    damage, place = case["damage"], int(case["at"] * len(data))
    file = io.BytesIO()
    if damage == "none":
        return data
    if damage in SAVED_ANEW:
        content = torch.load(io.BytesIO(data), weights_only=True)
        if damage == "double precision":
            content["model"] = {k: v.double() if v.is_floating_point() else v for k, v in content["model"].items()}
        if damage == "other keys":
            content = {case["byte"]: "another", **content, "note": {"any": [None, case["at"]]}}
        if damage == "other order":
            content["model"] = dict(sorted(content["model"].items(), reverse=True))
        torch.save(content, file, _use_new_zipfile_serialization=damage != "old format")
        return file.getvalue()
    if damage == "cut":
        return data[:place]
    if damage == "flip":
        return data[:place] + bytes([data[place] ^ (1 << case["bit"])]) + data[place + 1 :]
    if damage == "overwritten":
        return data[:place] + bytes([case["byte"]]) * min(64, len(data) - place) + data[place + 64 :]
    if damage == "moved":
        return data[:place] + data[place + 64 :] + data[place : place + 64]
    if damage == "tail":
        return data + bytes([case["byte"]]) * 64
    if damage == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(ODD_CONTENTS[0]))
            archive.writestr("readme.txt", "no checkpoint")
    elif damage == "code":
        torch.save({"model": {}, "x": _Asks()}, file)
    elif damage == "old pickle":
        pickle.dump({"model": _Asks()}, file)
    elif damage == "content":
        torch.save(ODD_CONTENTS[case["byte"] % len(ODD_CONTENTS)], file)
    else:
        return {"empty": b"", "text": b"<html>no such file</html>"}[damage]
    return file.getvalue()


def run(case: dict[str, Any], folder: Path) -> str:
    _, weights = whole()
    path = folder / f"damaged{case['suffix']}"
    path.write_bytes(damaged(case))
    detr = model()
    with torch.no_grad():
        for value in detr.state_dict().values():
            value.zero_()
    checkpointer = DetrCheckpointer(detr)
    try:
        rest = checkpointer.load(str(path))
    except InputError as error:
        return check_line(error, str(path))
    assert not checkpointer.reinitialized, f"loaded in part: {checkpointer.reinitialized}"
    wrong = [key for key, value in detr.state_dict().items() if not value.equal(weights[key])]
    assert not wrong, f"other weights than the file's: {wrong[:3]}"
    assert rest.get("iteration") == 7, f"other values than the file's: {rest}"
    return RIGHT


CHECKPOINTS = Kind(
    st.fixed_dictionaries(
        {
            "damage": st.sampled_from(
                ["cut", "flip", "overwritten"] * 3
                + ["moved", "tail", "zip", "code", "old pickle", "content", "empty", "text"]
                + ["none", *SAVED_ANEW] * 2
            ),
            "at": st.floats(0, 0.9999),
            "bit": st.integers(0, 7),
            "byte": st.integers(0, 255),
            "suffix": st.sampled_from([".pth"] * 6 + [".pkl", ".safetensors", ".pt"]),
        }
    ),
    run,
)
