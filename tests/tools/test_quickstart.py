"""tools/quickstart.py: the folders that it trains in."""

import runpy
from pathlib import Path

from tests.conftest import ROOT

quickstart = runpy.run_path(str(ROOT / "tools" / "quickstart.py"))


def test_a_new_training_has_a_folder_of_its_own_and_resume_takes_the_last(tmp_path):
    free, last = quickstart["free_folder"], quickstart["last_folder"]
    first = tmp_path / "out"
    assert last(str(first)) == first
    assert free(str(first)) == first == last(str(first))
    assert free(str(first)) == Path(f"{first}_2") == last(str(first))
    assert Path(f"{first}_2").is_dir()
