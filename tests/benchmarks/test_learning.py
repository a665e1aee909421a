"""Steps to an AP, medians of seeds, and the files. Nothing is trained."""

import pytest

from benchmarks import learning

WHERE = {"cpu": "a CPU", "versions": {"torch": "1"}, "date": "today"}


def curve(*aps, seconds=2.0):
    """Evaluations every 500 steps."""
    points = enumerate(aps, start=1)
    return [{"step": 500 * i, "seconds": 500 * seconds * i, "AP": ap, "AP50": ap + 20} for i, ap in points]


@pytest.mark.parametrize(("ap", "steps"), [(10.0, 250.0), (20.0, 500.0), (50.0, 1000.0), (60.0, 1250.0), (71.0, None)])
def test_steps_to_an_ap_are_on_the_line_between_two_evaluations(ap, steps):
    found = curve(20.0, 50.0, 70.0, 65.0)
    assert learning.steps_to(found, ap) == steps
    assert learning.steps_to(found, ap, "seconds") == (None if steps is None else 2 * steps)


def test_medians_count_a_seed_that_never_gets_there_as_the_slowest():
    runs = {"1": curve(20.0, 70.0), "2": curve(20.0, 61.0), "3": curve(20.0, 30.0)}
    lines = learning.markdown({"recipes": {"plain": runs}, **WHERE}).splitlines()
    row = [cell.strip() for cell in next(line for line in lines if line.startswith("| plain")).strip("|").split("|")]
    # 500 + 500 * 40 / 41 and 500 + 500 * 40 / 50; to AP 65 only one of three
    assert row == ["plain", "3", "61.0", "-", "-", "61.0 (30.0 to 70.0), 1000", "988", "-", "2000 ms"]


def test_every_recipe_has_its_row_and_its_line_in_the_picture(tmp_path):
    recipes = {name: {"1": curve(20.0, 50.0), "2": curve(30.0, 60.0)} for name in learning.RECIPES}
    learning.write({"recipes": recipes, **WHERE}, tmp_path)
    text = (tmp_path / "LEARNING.md").read_text()
    assert all(f"\n| {name} " in text for name in recipes)
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "learning.json").is_file()
