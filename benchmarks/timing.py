"""Fair timing: contestants agree on the answer first, then take turns, and medians are compared."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_REPEATS = 7  # fewer give no median worth printing


class Disagreement(Exception):
    """Contestants gave different answers, so that their times mean nothing."""


class Unavailable(Exception):
    """A part cannot run here; the text says what is missing."""


@dataclass(frozen=True)
class Settings:
    """How to measure.

    repeats: timed turns of each contestant
    threads: of the CPU, for every contestant
    smoke: small inputs, to see that a part works; its numbers mean nothing and are not kept
    """

    repeats: int = MIN_REPEATS
    threads: int = 2
    smoke: bool = False


@dataclass(frozen=True)
class Sample:
    """What one contestant took, a value a turn."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Result:
    """The outcome of a part.

    samples: ours first, then the peer that the goal speaks of, then the other peers
    unit: of the values, "s", "MiB", "images/s" or "points" of AP or PQ
    agreement: how far the outputs are apart, and which bound they kept
    note: what else a reader should know of this measurement
    """

    samples: dict[str, Sample]
    unit: str = "s"
    agreement: str = ""
    note: str = ""


def race(
    contestants: Mapping[str, Callable[[], Any]],
    repeats: int,
    check: Callable[[dict[str, Any]], str],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Sample], str]:
    """Seconds of each contestant, and what ``check`` says of their outputs.

    Everybody runs once to warm up; ``check`` sees these outputs by name and raises Disagreement if they are not
    the same, before anything is timed. Then they take turns, A B C A B C ..., so that a slow minute of the
    machine hits all alike. Rubbish is collected between the turns: nobody pays for another's.
    """
    outputs = {name: work() for name, work in contestants.items()}
    agreement = check(outputs)
    del outputs
    return take_turns(contestants, repeats, clock), agreement


def take_turns(
    contestants: Mapping[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Sample]:
    """Seconds of each contestant in ``repeats`` rounds; they must be warm already."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, work in contestants.items():
            gc.collect()
            start = clock()
            work()
            values[name].append(clock() - start)
    return {name: Sample(tuple(taken)) for name, taken in values.items()}


def require(who: str, differences: Mapping[str, float], bounds: Mapping[str, float]) -> str:
    """One phrase on how far ``who`` is from the reference. Raises Disagreement beyond a bound, and for NaN.

    differences: by what they are of, such as "scores"; bounds: for each of them
    """
    broken = [name for name, value in differences.items() if not value <= bounds[name]]
    text = ", ".join(f"{name} {value:.1e} (bound {bounds[name]:g})" for name, value in differences.items())
    if broken:
        raise Disagreement(f"{who} gives another answer: {text}")
    return f"{who}: {text}"


def ratio(ours: Sample, peer: Sample, unit: str) -> float:
    """Of the medians, as the goals have it: how often ours fits into the peer's time, the points that ours has more,
    else ours over the peer's."""
    if unit == "points":
        return ours.median - peer.median
    return peer.median / ours.median if unit == "s" else ours.median / peer.median


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power p of the law values ~ sizes ** p that fits best, by least squares on logarithms."""
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    return statistics.linear_regression(x, y).slope
