"""200 cases of hostile input, the same each time; `make fuzz` runs more, and others."""

import pytest

from tests.fuzz.outcome import check_line
from tests.fuzz.watch import SHARES, Result, count_cases, run_kinds

SEED, CASES = 1, 200


@pytest.mark.slow
def test_hostile_input_ends_in_a_right_result_or_one_line():
    cases = count_cases(CASES, list(SHARES))
    results = run_kinds(cases, SEED, processes=1)  # the other core has other tests
    defects = [defect.detail for result in results.values() for defect in result.defects]
    assert not defects, "\n\n".join(defects)
    assert sum(result.right + result.refused for result in results.values()) >= CASES
    for kind, result in results.items():
        assert result.right, f"no case of {kind} ends in a result"
        assert result.refused, f"no case of {kind} is refused"


@pytest.mark.slow
def test_a_case_that_kills_its_process_is_reported_and_the_others_go_on(monkeypatch):
    monkeypatch.setitem(SHARES, "fatal", 1)
    result = run_kinds({"fatal": 5}, SEED, processes=1)["fatal"]
    assert isinstance(result, Result)
    assert [defect.number for defect in result.defects] == [1, 3]
    assert "status -11" in result.defects[0].detail  # SIGSEGV
    assert "ValueError: a traceback" in result.defects[1].detail
    assert result.right == 3


@pytest.mark.parametrize("message", ["", "two\nlines", "x" * 5000, "without the name"])
def test_a_message_that_is_no_clear_line_is_a_defect(message):
    assert check_line(ValueError("a.json: bad"), "a.json") == "refused"
    with pytest.raises(AssertionError):
        check_line(ValueError(message), "a.json")
