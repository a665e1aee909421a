"""Strategies for values that no program expects, and for what may be wrong with a JSON file."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.outcome import as_json

DEEP, DIGITS, LONG = "@deep@", "@digits@", "@long@"  # stand for values that json.dumps does not write
TOKENS = {f'"{DEEP}"': "[" * 10_000 + "]" * 10_000, f'"{DIGITS}"': "7" * 400, f'"{LONG}"': "9" * 5_000}

NUMBERS: list[Any] = [0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 300, 1e8, -1e8, 1e30, -1e30, 1e308, math.nan, math.inf,
                      -math.inf, 65_536, 10**9, 2**31 - 1, 2**31, 2**32 + 1, 2**53 + 1, 2**63, -(2**63),
                      256**3]  # fmt: skip
TEXTS = [
    "",
    " ",
    "7",
    "1.5",
    "-3",
    "nan",
    "x",
    "é",
    "\u0000",
    "a\nb",
    "../a.png",
    "/dev/zero",
    "/dev/stdin",
    ".",
    "9" * 30,
]
OTHERS = [None, True, False, [], {}, [[]], [None], [1, 2, 3, 4], [1, 2, 3], ["1", "2", "3", "4"], {"id": 1}, DEEP,
          DIGITS, LONG]  # fmt: skip
ODD = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.sampled_from(OTHERS))
KEYS = ["images", "annotations", "categories", "id", "bbox", "segments_info"]
FREE = st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.sampled_from(KEYS), x, max_size=4),
    max_leaves=12,
)
CHANGES = ["set", "set", "nudge", "nudge", "nudge", "delete", "double", "wrap", "scale", "add"]
FILES = ["changed"] * 8 + ["varied"] * 14 + ["free", "cut", "bom", "utf-16", "byte", "tail", "empty", "as it is"]
VARIATIONS = ["shuffle", "drop", "twin", "float", "move", "move", "move", "crowd"]

Path = tuple[Any, ...]


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Of all that is inside of a value; of long lists the first three and the last."""
    if isinstance(value, dict):
        keys: Sequence[Any] = list(value)
    elif isinstance(value, list):
        keys = sorted({*range(min(len(value), 3)), len(value) - 1} - {-1})
    else:
        return
    for key in keys:
        yield (*path, key)
        yield from _paths(value[key], (*path, key))


@st.composite
def changed(draw: Any, document: Any, extra_keys: Sequence[str] = ()) -> Any:
    """A copy of a document with one to three changes of its structure or its values.

    extra_keys: keys that any dict may get, with odd values
    """
    document = copy.deepcopy(document)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = list(_paths(document))
        if not paths:
            break
        paths += 4 * [path for path in paths if len(path) > 2]  # most of what can go wrong is inside of an entry
        *head, last = draw(st.sampled_from(paths))
        parent = document
        for key in head:
            parent = parent[key]
        kind = draw(st.sampled_from(CHANGES))
        value = parent[last]
        if kind == "delete":
            del parent[last]
        elif kind == "double" and isinstance(parent, list):
            twin = copy.deepcopy(value)
            if isinstance(twin, dict) and "id" in twin and draw(st.booleans()):
                twin["id"] = 1000 + draw(st.integers(0, 5))
            parent.append(twin)
        elif kind == "wrap":
            parent[last] = draw(st.sampled_from([[value], {"0": value}, str(value)]))
        elif kind == "nudge":
            if isinstance(value, (int, float)) and last not in ("id", "image_id", "category_id"):
                parent[last] = value + draw(st.sampled_from([-30, -5, -1, -0.5, 0.25, 3, 15, 40]))
        elif kind == "scale" and isinstance(value, (int, float)) and not isinstance(value, bool):
            parent[last] = value * draw(st.sampled_from([-1, 0, 2, 10, 1e3, 1e6]))
        elif kind == "add" and isinstance(value, dict) and extra_keys:
            value[draw(st.sampled_from(extra_keys))] = copy.deepcopy(draw(ODD))
        else:
            parent[last] = copy.deepcopy(draw(ODD))  # a later change may be inside of it
    return document


@st.composite
def varied(draw: Any, document: Any) -> Any:
    """A copy of a document with one to four changes after which it may well be good."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 4))):
        kind, objects = draw(st.sampled_from(VARIATIONS)), document["annotations"]
        if kind == "shuffle":
            entries = document[draw(st.sampled_from(sorted(document)))]
            entries[:] = draw(st.permutations(entries))
            continue
        entry = draw(st.sampled_from(objects))
        if kind == "drop" and len(objects) > 1:
            objects.remove(entry)
        elif kind == "twin":
            objects.append({**copy.deepcopy(entry), "id": max(x.get("id", 0) for x in objects) + 1})
        elif kind == "crowd":
            entry["iscrowd"] = draw(st.sampled_from([0, 1, False, True, None]))
        elif kind == "float":
            *head, last = draw(st.sampled_from(list(_paths(entry))))
            parent = _inside(entry, head)
            if type(parent[last]) is int:
                parent[last] = float(parent[last])
        elif kind == "move":
            paths = [path for path in _paths(entry) if path[0] in ("bbox", "area") or path[:1] == ("segmentation",)]
            numbers = [
                path for path in paths if isinstance(_inside(entry, path), (int, float)) and "counts" not in path
            ]
            if numbers and "size" not in (path := draw(st.sampled_from(numbers))):
                step = draw(st.sampled_from([-5, -1, -0.5, 0.25, 3, 15]))
                _inside(entry, path[:-1])[path[-1]] += step
    return document


def _inside(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


def _as_text(value: Any) -> str:
    text = as_json(value)
    for token, replacement in TOKENS.items():
        text = text.replace(token, replacement)
    return text


@st.composite
def json_files(draw: Any, document: Any, extra_keys: Sequence[str] = ()) -> bytes:
    """The bytes of a file that holds a changed document, damaged text or anything else."""
    kind = draw(st.sampled_from(FILES))
    if kind == "changed":
        return _as_text(draw(changed(document, extra_keys))).encode("utf-8", "surrogatepass")
    if kind == "varied":
        return as_json(draw(varied(document))).encode()
    data = as_json(document).encode()
    if kind == "free":
        return _as_text(draw(FREE)).encode("utf-8", "surrogatepass")
    if kind == "cut":
        return data[: draw(st.integers(0, len(data) - 1))]
    if kind == "bom":
        return b"\xef\xbb\xbf" + data
    if kind == "utf-16":
        return data.decode().encode("utf-16")
    if kind == "byte":
        at = draw(st.integers(0, len(data) - 1))
        return data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
    if kind == "tail":
        return data + draw(st.sampled_from([b"x", b"\0", b"\n\n", b"{}", b"]"]))
    return b"" if kind == "empty" else data
