"""results.json, which holds the last measurement of each part, and RESULTS.md, which is made from it."""

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.parts import PARTS, TRANSFERS, Part
from benchmarks.timing import Result, Sample, Settings, ratio

FOLDER = Path(__file__).resolve().parent
PACKAGES = (
    *("torch", "torchvision", "transformers", "timm", "openvino", "nncf", "onnxruntime", "pycocotools", "hotcoco"),
    *("numpy", "scipy"),
)
ORACLE = "detr 0.1.4 (the original)"


def today() -> str:
    return datetime.date.today().isoformat()


def machine(settings: Settings) -> dict[str, Any]:
    """What a number depends on besides the code."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def row(part: Part, result: Result, where: Mapping[str, Any], bound: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One part's entry in results.json. The ratio that counts is that to the first peer.

    bound: what the machine allows (see ``roofline.bound``)
    """
    (_, ours), *peers = result.samples.items()
    against = {peer: {**_numbers(sample), "ratio": ratio(ours, sample, result.unit)} for peer, sample in peers}
    first = peers[0][0]
    return {
        "work": part.work,
        "goal": str(part.goal),
        "ratio": against[first]["ratio"],
        "reached": part.goal.reached(ours.median if part.goal.unit == "s" else against[first]["ratio"]),
        "unit": result.unit,
        "ours": _numbers(ours),
        "peers": against,
        "agreement": result.agreement,
        "note": result.note,
        "bound": bound,
        "date": today(),
        **where,
    }


def missing_row(part: Part, reason: str, where: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a part that cannot run here."""
    found = {"work": part.work, "goal": str(part.goal), "unavailable": reason}
    return {**found, "date": today(), **where}


def _numbers(sample: Sample) -> dict[str, Any]:
    return {"median": sample.median, "low": sample.low, "high": sample.high, "repeats": len(sample.values)}


def load(path: Path) -> dict[str, Any]:
    """{"rows": by part, "growth": by topic}, empty where nothing has been measured."""
    if not path.is_file():
        return {"rows": {}, "growth": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def merge(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """New rows and curves take the place of old ones of their name; all others stay."""
    return {key: {**before.get(key, {}), **after.get(key, {})} for key in ("rows", "growth")}


def save(results: Mapping[str, Any], folder: Path = FOLDER) -> None:
    """Each file whole or not at all: an interrupted run loses nothing."""
    texts = {"results.json": json.dumps(results, indent=1) + "\n", "RESULTS.md": markdown(results)}
    for name, text in texts.items():
        path = folder / name
        path.with_suffix(".new").write_text(text, encoding="utf-8")
        path.with_suffix(".new").replace(path)


def markdown(results: Mapping[str, Any]) -> str:
    """The whole of RESULTS.md."""
    rows = {name: results["rows"][name] for name in PARTS if name in results["rows"]}
    runs = _runs([*rows.values(), *results["growth"].values()])
    blocks = [
        "# Results",
        "Written by `make bench`. A ratio above 1 is in our favor for times and rates: how many times longer the peer "
        "takes, or how many times more we do; for memory it is our share of the peer's, "
        "for AP and PQ what ours has more. Medians, with the lowest and highest value; contestants take turns in "
        "one process, a new one for each part (for memory, for each measurement), after their outputs were found to "
        "agree, within the bounds given below. The ratio to the goal's peer, the first one, is the one that counts.",
        *(f"Run {letter}: {text}." for text, letter in runs.items()),
        summary_table(rows),
        "## Against each peer",
        _peer_table(rows, runs),
        *_limits(rows),
        "## What was run",
        *(_legend(name, found) for name, found in rows.items()),
    ]
    if results["growth"]:
        blocks += ["## How cost grows", *_growth(results["growth"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _machine_text(row: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    where = f"{row['cpu']}, {row['cores']} cores, {row['threads']} threads, Python {row['python']}"
    return f"{row['date']}, {where}, {ORACLE}, {versions}"


def _runs(rows: list[Mapping[str, Any]]) -> dict[str, str]:
    """Each day, machine and set of versions -> a letter."""
    texts = dict.fromkeys(_machine_text(row) for row in rows)
    return {text: chr(ord("A") + i % 26) * (1 + i // 26) for i, text in enumerate(texts)}


def summary_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a part: goal, ratio, and whether the one reaches the other."""
    body = []
    for row in rows.values():
        if "unavailable" in row:
            body.append([row["work"], row["goal"], "-", f"not measured: {row['unavailable']}"])
        else:
            peer = next(iter(row["peers"]))
            reached = {None: "-", True: "yes", False: "**no**"}[row["reached"]]
            goal, ratio = f"{row['goal']} {peer}", _ratio(row["ratio"], row["unit"])
            if row["goal"].endswith(" s"):  # of our own time
                before = _seconds(row["peers"][peer]["median"])
                goal, ratio = row["goal"], f"{_seconds(row['ours']['median'])}; {peer} {before}"
            body.append([row["work"], goal, ratio, reached])
    body.append([TRANSFERS[0], TRANSFERS[1], "-", TRANSFERS[2]])
    return _table(body, ["work", "goal", "ratio", "reached"])


def summary_line(row: Mapping[str, Any]) -> str:
    """What a part came to, while others still run."""
    if "unavailable" in row:
        return f"not measured ({row['unavailable']})"
    ours = _spread(row["ours"], row["unit"])
    peers = ", ".join(f"{_ratio(found['ratio'], row['unit'])} {peer}" for peer, found in row["peers"].items())
    return f"ours {ours}; {peers}"


def _peer_table(rows: Mapping[str, Mapping[str, Any]], runs: Mapping[str, str]) -> str:
    body = []
    for row in rows.values():
        if "unavailable" in row:
            continue
        letter, unit = runs[_machine_text(row)], row["unit"]
        body.append([row["work"], "ours", _spread(row["ours"], unit), "", row["ours"]["repeats"], letter])
        for peer, found in row["peers"].items():
            # A time that is nearly nothing has no ratio.
            ratio = "" if row["goal"].endswith(" s") else _ratio(found["ratio"], unit)
            body.append(["", peer, _spread(found, unit), ratio, found["repeats"], letter])
    return _table(body, ["work", "who", "median (lowest to highest)", "ratio", "turns", "run"])


def _limits(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the CPU itself allows, for the rows that are about products."""
    body = []
    for row in rows.values():
        if bound := row.get("bound"):
            seconds, ours = bound["seconds"], row["ours"]["median"]
            peer = next(iter(row["peers"].values()))["median"]
            rate = f"{bound['peak']:.0f} GFLOP/s ({bound['dtype']})"
            numbers = (f"{bound['gflop']:.0f}", rate, _seconds(seconds), _seconds(ours), f"{seconds / ours:.0%}")
            body.append([row["work"], *numbers, f"{peer / seconds:.2f} x", row["goal"]])
    if not body:
        return []
    intro = (
        "The products of a row (two operations each) at the highest rate that this CPU was seen to reach, in a 3 x 3 "
        "convolution by oneDNN. With these multiplications that time is the least, and the ratio beside the goal the "
        "most that can be had against the goal's peer. Norms, softmax, upsampling, memory and Python come on top."
    )
    head = ["work", "GFLOP", "highest rate", "takes at least", "ours", "of the highest rate", "ratio at most", "goal"]
    return ["## What the machine allows", intro, _table(body, head)]


def _ratio(value: float, unit: str) -> str:
    return f"{value:+.2f} points" if unit == "points" else f"{value:.2f} x"


def _spread(found: Mapping[str, Any], unit: str) -> str:
    scale, name = (1000, "ms") if unit == "s" and found["median"] < 1 else (1, unit)
    median, low, high = (f"{found[key] * scale:.4g}" for key in ("median", "low", "high"))
    return f"{median} {name} ({low} to {high})"


def _legend(name: str, row: Mapping[str, Any]) -> str:
    lines = [f"**{row['work']}** (`{name}`). {PARTS[name].how}"]
    if row.get("agreement"):
        lines.append(f"Differences from the reference: {row['agreement']}.")
    if row.get("note"):
        lines.append(f"Note: {row['note']}.")
    return " ".join(lines)


def _growth(curves: Mapping[str, Mapping[str, Any]]) -> list[str]:
    body = []
    for curve in curves.values():
        for who, line in curve["lines"].items():
            ends = " to ".join(f"{line['sizes'][i]:,}" for i in (0, -1))
            times = " to ".join(_seconds(line["seconds"][i]) for i in (0, -1))
            verdict = "**worse than linear**" if line["worse_than_linear"] else ""
            body.append([curve["title"], who, ends, times, f"{line['slope']:.2f}", verdict])
    worse = [
        f"{curve['title']} grows worse than linear: {curve['reason']}"
        for curve in curves.values()
        if any(line["worse_than_linear"] for line in curve["lines"].values())
    ]
    head = ["what grows", "who", "sizes", "time", "slope", ""]
    intro = "The slope is the power p of time ~ size^p that fits best; a part that does not grow flattens it."
    return [intro, "![time against size](growth.png)", _table(body, head), *worse]


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def _table(body: list[list[Any]], headers: list[str]) -> str:
    return str(tabulate(body, headers=headers, tablefmt="pipe", disable_numparse=True))
