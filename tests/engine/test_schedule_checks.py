"""Whether a schedule fits a data set, by cases made by hand."""

import numpy as np
import pytest
from detectron2.structures import BoxMode

from detr.engine.defaults import load_config
from detr.engine.schedule_checks import DataSizes, schedule_warnings
from detr.engine.solver import schedule_in_iterations
from tests.conftest import QUICKSTART, ROOT

R50 = ROOT / "configs" / "COCO-Detection" / "detr_R_50.yaml"


def sizes(images, height, width, objects=()):
    return DataSizes(np.full((images, 2), (height, width), dtype=float), np.array(objects))


COCO = sizes(118287, 480, 640, [0.1, 0.15, 0.3])
SHAPES = sizes(4000, 128, 128, [0.2, 0.3])


def lines(config, data, *opts):
    return schedule_warnings(schedule_in_iterations(load_config(str(config), list(opts)), len(data.sizes)), data)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("COCO-*/*.yaml")), ids=lambda path: path.stem)
def test_our_configs_fit_coco(path):
    assert lines(path, COCO) == []


@pytest.mark.parametrize("name", ["shapes_detection", "shapes_panoptic"])
def test_the_quickstart_fits_its_data(name):
    assert lines(QUICKSTART.with_name(f"{name}.yaml"), SHAPES) == []


def test_the_quickstarts_schedule_on_twenty_images():
    """12 iterations, all of them in the warm-up of 200."""
    few = sizes(20, 128, 128, [0.2])
    short, warmup = lines(QUICKSTART, few)
    assert short.startswith("a training of 6 epochs, 12 iterations is too short")
    assert "set SOLVER.MAX_EPOCHS 500," in short  # of 2 iterations each
    assert warmup.startswith("the warm-up of the learning rate, 200 iterations, is a large part")
    assert warmup.endswith("set SOLVER.WARMUP_ITERS 50")
    assert lines(QUICKSTART, few, "SOLVER.MAX_EPOCHS=500", "SOLVER.WARMUP_ITERS=50", "TEST.EVAL_EPOCHS=50") == []


@pytest.mark.parametrize(
    ("opts", "begin", "end"),
    [
        (["SOLVER.WARMUP_ITERS=400"], "the warm-up", "set SOLVER.WARMUP_ITERS 50"),
        (["SOLVER.STEPS=(1200,)"], "the drop of the learning rate after 1200", 'set SOLVER.STEPS "(800,)"'),
        (["SOLVER.STEPS=(100,900)"], "the learning rate drops after 100", 'set SOLVER.STEPS "(800,)"'),
        (["TEST.EVAL_PERIOD=2000"], "the evaluation period, 2000", "set TEST.EVAL_PERIOD 100"),
    ],
)
def test_a_schedule_in_iterations(opts, begin, end):
    base = ["SOLVER.MAX_ITER=1000", "TEST.EVAL_PERIOD=100", "SOLVER.STEPS=(800,)", "SOLVER.WARMUP_ITERS=100",
            "SOLVER.LR_SCHEDULER_NAME=WarmupMultiStepLR"]  # fmt: skip
    assert lines(QUICKSTART, SHAPES, *base) == []
    (line,) = lines(QUICKSTART, SHAPES, *base, *opts)
    assert line.startswith(begin)
    assert line.endswith(end)


def test_an_early_drop_and_a_rare_evaluation_in_epochs():
    drop, evaluation = lines(R50, sizes(1600, 480, 640), "SOLVER.MAX_EPOCHS=50", "SOLVER.DROP_EPOCHS=(5,)",
                             "TEST.EVAL_EPOCHS=60")  # fmt: skip
    assert drop.endswith('set SOLVER.DROP_EPOCHS "(40,)"')
    assert evaluation.endswith("set TEST.EVAL_EPOCHS 1")


def test_a_warmup_that_does_nothing_is_not_warned_of():
    assert lines(QUICKSTART, SHAPES, "SOLVER.WARMUP_ITERS=2000", "SOLVER.WARMUP_FACTOR=1.0") == []


def test_a_batch_larger_than_the_data_set():
    first, *_ = lines(R50, sizes(5, 480, 640), "SOLVER.MAX_EPOCHS=1000", "SOLVER.DROP_EPOCHS=(800,)")
    assert first.startswith("SOLVER.IMS_PER_BATCH 16 is more than the 5 training images")
    assert first.endswith("set SOLVER.IMS_PER_BATCH 5")


def test_small_images_that_are_enlarged():
    (line,) = lines(R50, sizes(4000, 128, 128))
    assert "of about 128 x 128 pixels are enlarged 5.0 times" in line
    assert 'set INPUT.MIN_SIZE_TRAIN "(192,)" INPUT.MAX_SIZE_TRAIN 320 INPUT.MIN_SIZE_TEST 192' in line


def test_large_images_of_small_objects_are_warned_of_and_of_large_ones_not():
    large, small = sizes(4000, 3000, 4000, [0.2]), sizes(4000, 3000, 4000, [0.01])
    assert lines(R50, large) == []
    (line,) = lines(R50, small)
    assert "made 4.7 times smaller, so that half of the objects have less than 12 pixels a side" in line


def test_a_test_size_that_was_forgotten():
    (line,) = lines(R50, COCO, "INPUT.MIN_SIZE_TRAIN=(320,)", "INPUT.MAX_SIZE_TRAIN=533")
    assert line.startswith("INPUT.MIN_SIZE_TEST 800 is far from the sizes of the training, 320,")
    assert line.endswith("set INPUT.MIN_SIZE_TEST 320 INPUT.MAX_SIZE_TEST 533")


def test_what_is_measured():
    box = {"bbox": [10, 10, 40, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    crowd = {**box, "bbox": [0, 0, 90, 90], "iscrowd": 1}
    dicts = [{"file_name": "a", "height": 50, "width": 200, "annotations": [box, crowd]},
             {"file_name": "b", "height": 100, "width": 100, "annotations": []}]  # fmt: skip
    data = DataSizes.measure(dicts)
    assert data.sizes.tolist() == [[50, 200], [100, 100]]
    assert data.objects.tolist() == [0.2]  # sqrt(40 * 10 / (50 * 200))
