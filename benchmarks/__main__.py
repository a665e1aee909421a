"""The command line: `python -m benchmarks [PART ...] [--growth]`."""

import argparse
import logging
import os
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what imports torch waits until the number of threads is set
    from benchmarks.timing import Settings


def main() -> int:
    options = _parse()
    # Before torch and the others are imported, which read these once; processes that are started inherit them.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    import torch

    from benchmarks import gpu, learning, photos, report
    from benchmarks.growth import TOPICS
    from benchmarks.parts import PARTS
    from benchmarks.timing import MIN_REPEATS, Settings, Unavailable

    if options.list:
        for name, part in PARTS.items():
            print(f"{name:14} {part.work}, goal {part.goal}")
        print(f"{'growth':14} how cost grows: {', '.join(TOPICS)}")
        print(f"{'learning':14} AP against training steps: {', '.join(learning.RECIPES)}; by itself, hours")
        print(f"{'photos':14} AP on photographs that are trained on: {', '.join(photos.RECIPES)}; by itself, an hour")
        print(f"{'gpu':14} what is there of it, on the GPU of this machine; by itself, five minutes")
        return 0
    alone = {"learning": learning.measure, "photos": photos.measure, "gpu": gpu.measure}
    if alone.keys() & set(options.parts) and len(options.parts) > 1:
        print(f"{', '.join(alone)} have runs of their own: name one alone", file=sys.stderr)
        return 2
    if unknown := set(options.parts) - PARTS.keys() - alone.keys():
        print(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 2
    if options.repeats < MIN_REPEATS and not options.smoke:
        print(f"--repeats must be {MIN_REPEATS} or more: fewer give no median worth printing", file=sys.stderr)
        return 2
    if set(options.parts) <= alone.keys() and options.parts:
        where = {**report.machine(Settings(threads=1)), "date": report.today()}
        try:
            alone[options.parts[0]](where, jobs=options.threads, smoke=options.smoke)
        except Unavailable as reason:
            print(reason, file=sys.stderr)
            return 2
        return 0
    torch.set_num_threads(options.threads)
    settings = Settings(1 if options.smoke else options.repeats, options.threads, options.smoke)
    parts = options.parts or ([] if options.growth else list(PARTS))
    growth = options.growth or not options.parts
    if len(parts) + growth > 1:
        return _each_alone(parts, growth, options)
    return _measure(parts, list(TOPICS) if growth else [], settings)


def _each_alone(parts: list[str], growth: bool, options: argparse.Namespace) -> int:
    """A process for each: what one has left in the allocator would make the next one's contestants faster, and
    the more so the more memory they ask for. Returns 1 where any has failed."""
    from benchmarks import report

    flags = [f"--repeats={options.repeats}", f"--threads={options.threads}", *(["--smoke"] if options.smoke else [])]
    failed = False
    for work in [*parts, *(["--growth"] if growth else [])]:
        failed |= bool(subprocess.run([sys.executable, "-m", "benchmarks", work, *flags], check=False).returncode)
    if parts and not options.smoke:
        rows = report.load(report.FOLDER / "results.json")["rows"]
        print("\n" + report.summary_table({name: rows[name] for name in parts if name in rows}))
    return int(failed)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures this project beside its peers and writes RESULTS.md."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="rows of the table; without any, all and the growth")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each contestant, at least 7")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--growth", action="store_true", help="how cost grows, beside the parts that are named")
    parser.add_argument("--list", action="store_true", help="name the parts and do nothing")
    parser.add_argument("--smoke", action="store_true", help="one turn on small inputs, and nothing is written")
    return parser.parse_args()


def _measure(parts: list[str], topics: list[str], settings: "Settings") -> int:
    """Writes after each part: an interrupted run keeps what it has. Returns 1 where outputs disagreed."""
    from benchmarks import growth, picture, report, roofline
    from benchmarks.parts import PARTS
    from benchmarks.timing import Disagreement, Unavailable

    where, results, failed = report.machine(settings), report.load(report.FOLDER / "results.json"), []
    for name in parts:
        part, start = PARTS[name], time.perf_counter()
        try:
            found = report.row(part, part.run(settings), where, roofline.bound(name, settings))
        except Unavailable as reason:
            found = report.missing_row(part, str(reason), where)
        except Disagreement as reason:
            found = report.missing_row(part, f"outputs disagree: {reason}", where)
            failed.append(name)
        _say(f"{name}: {report.summary_line(found)}, in {time.perf_counter() - start:.0f} s")
        results = report.merge(results, {"rows": {name: found}})
        if not settings.smoke:
            report.save(results)
    for name in topics:
        start = time.perf_counter()
        curve = {**growth.curve(growth.TOPICS[name], settings), **where, "date": report.today()}
        slopes = ", ".join(f"{who} {line['slope']:.2f}" for who, line in curve["lines"].items())
        _say(f"growth of {name}: slopes {slopes}, in {time.perf_counter() - start:.0f} s")
        results = report.merge(results, {"growth": {name: curve}})
        if not settings.smoke:
            picture.draw(results["growth"], report.FOLDER / "growth.png")
            report.save(results)
    return 1 if failed else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
