"""Rows, goals, merging, and what RESULTS.md says of them."""

import json
import re

import pytest

from benchmarks import __main__ as command
from benchmarks import growth, report
from benchmarks.parts import PARTS, Goal
from benchmarks.timing import Result, Sample, Settings

WHERE = {"cpu": "a CPU", "cores": 2, "threads": 2, "python": "3", "versions": {"torch": "1"}}
OTHER = {**WHERE, "versions": {"torch": "2"}}
RESULT = Result({"ours": Sample((2.0,) * 7), "original": Sample((5.0,) * 7), "transformers": Sample((3.0,) * 7)})


def results(**rows):
    return {"rows": rows, "growth": {}}


def test_goals():
    assert Goal(1.8).reached(1.8)
    assert not Goal(1.8).reached(1.79)
    assert Goal(0.7, at_most=True).reached(0.7)
    assert not Goal(0.7, at_most=True).reached(0.71)
    assert str(Goal(0.7, at_most=True)) == "<= 0.7 x"


def test_a_goal_in_seconds_is_of_our_own_time():
    row = report.row(PARTS["converter"], Result({"ours": Sample((3.5,)), "peer": Sample((7.0,))}), WHERE)
    assert (row["goal"], row["reached"], row["ratio"]) == ("<= 4 s", True, 2.0)
    assert not report.row(PARTS["converter"], Result({"ours": Sample((4.5,)), "peer": Sample((9.0,))}), WHERE)[
        "reached"
    ]
    assert "| <= 4 s | 3.5 s; peer 7 s | yes |" in re.sub(" +", " ", report.summary_table({"converter": row}))


def test_a_row_has_the_ratio_to_the_first_peer():
    row = report.row(PARTS["inference"], RESULT, WHERE)
    assert row["ratio"] == 2.5
    assert row["reached"]
    assert row["peers"]["transformers"] == {"median": 3.0, "low": 3.0, "high": 3.0, "repeats": 7, "ratio": 1.5}
    assert not report.row(PARTS["losses"], RESULT, WHERE)["reached"]  # wants 3


def test_memory_is_judged_by_its_share():
    result = Result({"ours": Sample((300.0,)), "original": Sample((500.0,))}, unit="MiB")
    row = report.row(PARTS["memory"], result, WHERE)
    assert row["ratio"] == pytest.approx(0.6)
    assert row["reached"]


def test_points_of_ap_are_a_difference():
    scores = {"ours": Sample((69.4,)), "ours, float32": Sample((70.0,)), "ONNX": Sample((69.0,))}
    row = report.row(PARTS["int8-ap"], Result(scores, unit="points"), WHERE)
    assert row["ratio"] == pytest.approx(-0.6)
    assert not row["reached"]  # allows 0.5
    text = report.markdown(results(**{"int8-ap": row}))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [PARTS["int8-ap"].work, ">= -0.5 points ours, float32", "-0.60 points", "**no**"] in lines
    assert ["", "ONNX", "69 points (69 to 69)", "+0.40 points", "1"] in [line[:5] for line in lines]
    assert report.summary_line(row).endswith("; -0.60 points ours, float32, +0.40 points ONNX")


def test_a_row_may_only_report():
    row = report.row(PARTS["int8-onnx"], RESULT, WHERE)
    assert row["reached"] is None
    assert "| reported: original | 2.50 x" in report.markdown(results(**{"int8-onnx": row}))
    assert not [line for line in report.markdown(results(**{"int8-onnx": row})).splitlines() if "**no**" in line]


def test_the_limits_say_what_the_machine_allows():
    bound = {"gflop": 200.0, "dtype": "float32", "peak": 160.0, "seconds": 1.25}
    text = report.markdown(results(inference=report.row(PARTS["inference"], RESULT, WHERE, bound)))
    line = next(line for line in text.splitlines() if "160 GFLOP/s (float32)" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")][3:] == ["1.25 s", "2 s", "62%", "4.00 x", ">= 1.8 x"]
    assert "What the machine allows" not in report.markdown(results(losses=report.row(PARTS["losses"], RESULT, WHERE)))


def test_a_part_alone_refreshes_only_its_row():
    old = report.row(PARTS["inference"], RESULT, WHERE)
    before = {"rows": {"inference": old, "losses": report.row(PARTS["losses"], RESULT, WHERE)}, "growth": {"area": {}}}
    new = report.row(PARTS["losses"], RESULT, OTHER)
    after = report.merge(before, {"rows": {"losses": new}})
    assert after == {"rows": {"inference": old, "losses": new}, "growth": {"area": {}}}
    assert before["rows"]["losses"]["versions"] == {"torch": "1"}  # nothing was changed in place


def test_results_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "results.json"
    assert report.load(path) == {"rows": {}, "growth": {}}
    written = results(inference=report.row(PARTS["inference"], RESULT, WHERE))
    report.save(written, tmp_path)
    assert report.load(path) == json.loads(json.dumps(written))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["RESULTS.md", "results.json"]


def test_markdown_names_goal_ratio_spread_and_machine():
    text = report.markdown(
        results(
            inference=report.row(PARTS["inference"], RESULT, WHERE),
            losses=report.row(PARTS["losses"], RESULT, OTHER),
            openvino=report.missing_row(PARTS["openvino"], "no OpenVINO", WHERE),
        )
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [PARTS["inference"].work, ">= 1.8 x original", "2.50 x", "yes"] in lines
    assert [PARTS["losses"].work, ">= 3 x original", "2.50 x", "**no**"] in lines
    assert [PARTS["openvino"].work, ">= 2.6 x", "-", "not measured: no OpenVINO"] in lines
    assert ["", "transformers", "3 s (3 to 3)", "1.50 x", "7", "A"] in lines
    assert ["", "transformers", "3 s (3 to 3)", "1.50 x", "7", "B"] in lines  # measured with another torch
    assert "Run A: " in text
    assert "a CPU, 2 cores, 2 threads" in text


@pytest.mark.parametrize(("power", "worse"), [(1.0, False), (1.04, False), (1.1, True)])
def test_growth_worse_than_linear_is_named_with_its_reason(power, worse):
    samples = {"ours": {n: Sample((n**power,)) for n in (1, 2, 8)}, "original": {n: Sample((1.0,)) for n in (1, 2, 8)}}
    curve = growth.curve(growth.Topic("things", "they are many.", lambda _: samples), Settings())
    assert curve["lines"]["ours"]["slope"] == pytest.approx(power)
    assert curve["lines"]["ours"]["worse_than_linear"] is worse
    assert curve["lines"]["original"]["worse_than_linear"] is False
    text = report.markdown({"rows": {}, "growth": {"things": {**curve, **WHERE, "date": "today"}}})
    assert ("things grows worse than linear: they are many." in text) is worse


def test_unknown_parts_and_few_repeats_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("torch.set_num_threads", lambda _: pytest.fail("it measures"))
    monkeypatch.setattr("logging.disable", lambda _: None)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("sys.argv", ["benchmarks", "speed"])
    assert command.main() == 2
    assert "unknown parts: speed; there are inference, " in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["benchmarks", "losses", "--repeats", "6"])
    assert command.main() == 2
    assert "--repeats must be 7 or more" in capsys.readouterr().err
