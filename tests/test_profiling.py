"""Times of parts: they add up, they are where the time is spent, and the model is as before."""

import gzip
import importlib.util
import json
import time

import pytest
from detectron2.modeling import META_ARCH_REGISTRY

from detr import Detr, profiling
from detr.engine.defaults import load_config
from detr.errors import InputError
from tests.conftest import QUICKSTART, ROOT, TINY, as_opts

PANOPTIC = QUICKSTART.with_name("shapes_panoptic.yaml")
NETWORK = {"backbone stem", "backbone res2", "input projection", "position encoding", "encoder", "decoder", "heads"}
INFERENCE = NETWORK | {"preprocessing", "network, rest", "mask head", "postprocessing", "rest"}
TRAINING = NETWORK | {"targets", "matching", "losses", "mask head", "backward", "clipping and optimizer", "rest"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("profile_model", ROOT / "tools" / "profile_model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def config(settings=None):
    return load_config(str(PANOPTIC), as_opts({**TINY, **(settings or {})}))


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_parts_add_up(training):
    found = profiling.profile_model(config(), size=(64, 96), batch=2, training=training, steps=2)
    assert found.parts.keys() >= (TRAINING if training else INFERENCE)
    assert sum(part.host for part in found.parts.values()) == pytest.approx(found.total)
    assert all(part.host > 0 for part in found.parts.values())
    assert found.parts["rest"].host < 0.2 * found.total
    assert found.plain > 0


class Slow(Detr):
    """A fifth of a second in the heads, and as much in its own preprocessing."""

    def preprocess(self, batched_inputs):
        time.sleep(0.2)
        return super().preprocess(batched_inputs)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.class_embed.register_forward_hook(lambda *_: time.sleep(0.2))


def test_time_is_where_it_is_spent(monkeypatch):
    monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, "Slow", Slow)
    found = profiling.profile_model(config({"MODEL.META_ARCHITECTURE": "Slow"}), size=(64, 64), steps=2)
    others = {name: part.host for name, part in found.parts.items() if name not in ("preprocessing", "heads")}
    assert found.parts["preprocessing"].host >= 200
    assert found.parts["heads"].host >= 200
    assert all(host < 200 for host in others.values())


def test_the_tool(script, tmp_path, capsys):
    trace = tmp_path / "trace.json.gz"
    options = ["--config-file", str(PANOPTIC), "--size", "64", "64", "--steps", "1", "--trace", str(trace)]
    script.main([*options, *as_opts(TINY)])
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines() if line.endswith("%")}
    assert rows.keys() >= INFERENCE
    parts = [float(row[-2]) for name, row in rows.items() if name != "total"]
    assert sum(parts) == pytest.approx(float(rows["total"][1]), abs=0.01 * len(parts))
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert {f"detr: {name}" for name in INFERENCE - {"rest"}} <= {x.get("name") for x in events}


def test_on_a_gpu_kernels_have_columns(script):
    parts = {"encoder": profiling.Time(1.0, 3.0, 20), "rest": profiling.Time(4.0, 1.0, 5)}
    lines = script.table(profiling.Profile(parts, 5.0, 4.9, None), cuda=True).splitlines()
    assert lines[0].split() == ["part", "ms", "GPU", "ms", "launches", "share"]
    assert lines[2].split() == ["encoder", "1.00", "3.00", "20", "75.0%"]
    assert lines[-1].split() == ["total", "5.00", "4.00", "25", "100.0%"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 64)}, "the height is 0: it must be at least 1"),
        ({"batch": 0}, "the batch is 0"),
        ({"steps": 0}, "the number of steps is 0"),
        ({"meta": "GeneralizedRCNN"}, "only Detr can be profiled"),
    ],
)
def test_errors(options, message):
    settings = {"MODEL.META_ARCHITECTURE": options.pop("meta")} if "meta" in options else {}
    with pytest.raises(InputError, match=message):
        profiling.profile_model(config(settings), **options)


def test_a_trace_without_a_folder(script, tmp_path):
    with pytest.raises(InputError, match="it must be a file in a folder that is there"):
        script.main(["--config-file", str(PANOPTIC), "--trace", str(tmp_path / "no" / "trace.json")])
