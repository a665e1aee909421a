"""The plan of a fine-tuning by its own rule."""

import pytest

from detr.engine.plan import make_plan

PHOTO = 800 * 1067 / 1e6  # megapixels


@pytest.mark.parametrize(("images", "epochs"), [(1000, 20), (250, 40), (40, 100), (3, 100), (4000, 10), (118_000, 10)])
def test_epochs_by_the_root_of_the_number_of_images(images, epochs):
    assert make_plan(images, PHOTO, 80, on_gpu=True, pretrained=True).epochs == epochs


def test_a_large_set_on_a_large_gpu_has_the_papers_batch_and_learning_rate():
    plan = make_plan(10_000, PHOTO, 80, on_gpu=True, pretrained=True)
    assert (plan.batch, plan.learning_rate) == (16, 1e-4)


def test_a_small_gpu_takes_fewer_images():
    # (8 - 1.5) GB / (1.5 GB x 0.8536) = 5.08
    plan = make_plan(10_000, PHOTO, 8, on_gpu=True, pretrained=True)
    assert (plan.batch, plan.learning_rate) == (4, 5e-5)


def test_small_images_do_not_make_batches_larger_than_16_or_8_on_a_cpu():
    assert make_plan(10_000, 0.01, 8, on_gpu=True, pretrained=True).batch == 16
    assert make_plan(10_000, 0.01, 8, on_gpu=False, pretrained=True).batch == 8


@pytest.mark.parametrize(("images", "batch"), [(40, 4), (16, 2), (8, 1), (1, 1)])
def test_an_epoch_of_a_small_set_has_eight_steps_where_it_can(images, batch):
    assert make_plan(images, PHOTO, 80, on_gpu=True, pretrained=True).batch == batch


@pytest.mark.parametrize(("images", "num_gpus", "batch"), [(10_000, 4, 16), (10_000, 3, 12), (20, 4, 4)])
def test_gpus_have_equal_shares_of_a_batch(images, num_gpus, batch):
    plan = make_plan(images, PHOTO, 80, on_gpu=True, pretrained=True, num_gpus=num_gpus)
    assert plan.batch == batch
    assert plan.reasons[0].startswith(f"batch {batch}, {num_gpus} processes times {batch // num_gpus}: ")


def test_even_where_memory_is_too_small_a_batch_has_an_image():
    assert make_plan(1000, PHOTO, 1, on_gpu=True, pretrained=True).batch == 1


def test_what_the_user_sets_is_taken_and_counts():
    plan = make_plan(1000, PHOTO, 80, on_gpu=True, pretrained=True, batch=64, epochs=3)
    assert (plan.batch, plan.learning_rate, plan.epochs) == (64, 2e-4, 3)
    assert plan.warmup == 3 * 15 // 20
    assert not any(line.startswith(("batch", "3 epochs")) for line in plan.reasons)


def test_from_random_weights_the_papers_schedule():
    assert make_plan(100_000, PHOTO, 80, on_gpu=True, pretrained=False).epochs == 300
