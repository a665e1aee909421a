"""The made-up detections are worth counting, and both counters agree on them."""

from benchmarks.evaluation import DETECTIONS, check, count_ours, count_pycocotools, make_data


def test_counters_agree_on_a_small_set():
    data = make_data(12)
    assert len(data.results) == 12 * DETECTIONS
    theirs = count_pycocotools(data)
    assert len(theirs) == 24
    assert 0.1 < theirs[12] < theirs[0] < 0.9  # neither all hits nor none, and ragged masks overlap less than boxes
    assert check({"ours": count_ours(data), "pycocotools": theirs}).startswith("ours: 24 numbers")
    assert theirs == count_pycocotools(data)  # it left the data as they were
