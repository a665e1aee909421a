"""Runs cases of imports, each in a process of its own. They are forked, so that torch is imported once for all.

python tests/import_cases.py OUT < CASES

CASES: [[name, code], ...] as JSON. Code without a name runs in this process itself, and what it imports is there for
the later cases. OUT becomes {name: {"loaded": [module, ...], "error": a traceback or ""}}, as JSON.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.remove(str(Path(__file__).resolve().parent))


def run(code: str) -> dict[str, object]:
    error = ""
    try:
        exec(compile(code, "case", "exec"), {"__name__": "case"})
    except BaseException:
        error = traceback.format_exc()
    return {"loaded": sorted(sys.modules), "error": error}


def main() -> None:
    results = {}
    for name, code in json.load(sys.stdin):
        if not name:
            exec(code, {})
            continue
        with tempfile.NamedTemporaryFile() as file:
            child = os.fork()
            if child == 0:
                Path(file.name).write_text(json.dumps(run(code)), encoding="utf-8")
                sys.stdout.flush()
                os._exit(0)
            os.waitpid(child, 0)
            results[name] = json.loads(Path(file.name).read_text(encoding="utf-8"))
    Path(sys.argv[1]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
