"""Turns, medians, ratios and slopes, with a clock that says what the test wants. No timings are asserted."""

import itertools

import pytest

from benchmarks.timing import Disagreement, Sample, race, ratio, require, slope, take_turns


def test_median_and_spread():
    sample = Sample((5.0, 1.0, 2.0, 9.0))
    assert (sample.median, sample.low, sample.high) == (3.5, 1.0, 9.0)


def test_ratios_are_the_peers_for_times_and_ours_for_amounts():
    ours, peer = Sample((2.0, 2.0, 9.0)), Sample((1.0, 6.0, 6.0))
    assert ratio(ours, peer, "s") == 3.0
    assert ratio(ours, peer, "MiB") == pytest.approx(1 / 3)
    assert ratio(ours, peer, "images/s") == pytest.approx(1 / 3)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5, 2.0])
def test_the_slope_of_a_power_law_is_its_power(power):
    sizes = [1, 3, 10, 40]
    assert slope(sizes, [7 * size**power for size in sizes]) == pytest.approx(power)


def test_the_slope_fits_all_points():
    # By hand, in powers of two: x = 0, 1, 2 and y = 0, 1, 4 have the least-squares slope (4 - 0) / 2.
    assert slope([1, 2, 4], [1, 2, 16]) == pytest.approx(2.0)


def test_contestants_take_turns_after_one_warm_up_each():
    log = []
    ticks = itertools.count()

    def clock():
        return float(next(ticks))

    contestants = {name: lambda name=name: log.append(name) or name for name in "ABC"}

    def check(outputs):
        log.append("check")
        assert outputs == {"A": "A", "B": "B", "C": "C"}
        return "the same"

    samples, agreement = race(contestants, 2, check, clock)
    assert "".join(log) == "ABCcheckABCABC"
    assert agreement == "the same"
    assert {name: sample.values for name, sample in samples.items()} == dict.fromkeys("ABC", (1.0, 1.0))


def test_each_contestant_has_its_own_seconds():
    now = [0.0]

    def takes(seconds):
        def work():
            now[0] += seconds

        return work

    samples = take_turns({"ours": takes(2.0), "peer": takes(5.0)}, 3, lambda: now[0])
    assert samples == {"ours": Sample((2.0,) * 3), "peer": Sample((5.0,) * 3)}
    assert ratio(samples["ours"], samples["peer"], "s") == 2.5


def test_nothing_is_timed_where_outputs_differ():
    calls = []

    def check(outputs):
        return require("ours", {"answer": abs(outputs["ours"] - outputs["peer"])}, {"answer": 0.1})

    contestants = {"ours": lambda: calls.append("ours") or 1.0, "peer": lambda: calls.append("peer") or 1.2}
    with pytest.raises(Disagreement, match=r"ours gives another answer: answer 2\.0e-01 \(bound 0.1\)"):
        race(contestants, 7, check)
    assert calls == ["ours", "peer"]


@pytest.mark.parametrize(("value", "fine"), [(0.0, True), (1e-3, True), (1.1e-3, False), (float("nan"), False)])
def test_bounds(value, fine):
    differences, bounds = {"scores": value, "boxes": 0.0}, {"scores": 1e-3, "boxes": 1e-3}
    if fine:
        assert require("ours", differences, bounds).startswith("ours: scores")
    else:
        with pytest.raises(Disagreement):
            require("ours", differences, bounds)
