"""The stream of training images: Detectron2's batches, from any position, whatever the workers."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data import build_batch_data_loader, build_detection_train_loader
from detectron2.data.common import DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.samplers import TrainingSampler

from detr.data.training_stream import training_loader
from detr.errors import InputError

SIZES = [(40, 30), (30, 40), (30, 30), (50, 20), (20, 50)]
DICTS = [{"index": i, "width": SIZES[i % 5][0], "height": SIZES[i % 5][1]} for i in range(23)]


def augment(x):
    """Random numbers of all three kinds."""
    return {**x, "drawn": (random.random(), float(np.random.rand()), float(torch.rand(())))}


def detectron2s(grouped=True, workers=0, mapper=augment, dicts=DICTS, sampler=None, **options):
    sampler = sampler or TrainingSampler(len(dicts), seed=3)
    return build_detection_train_loader(
        dicts, mapper=mapper, sampler=sampler, total_batch_size=4, aspect_ratio_grouping=grouped, num_workers=workers,
        **options,
    )  # fmt: skip


def take(loader, count=20):
    return list(itertools.islice(loader, count))


def indices(batches):
    return [[x["index"] for x in batch] for batch in batches]


@pytest.mark.parametrize("grouped", [False, True])
def test_the_batches_are_detectron2s(grouped):
    assert indices(take(training_loader(detectron2s(grouped), 0))) == indices(take(detectron2s(grouped)))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_begins_anywhere(grouped, workers):
    """With the same images and random numbers, also where buckets are half full, and with any workers."""
    whole = take(training_loader(detectron2s(grouped), 0))
    for start in (1, 2, 7):
        loader = training_loader(detectron2s(grouped, workers), 0)
        batches = iter(loader)
        loader.batch_sampler.start = start  # as a checkpoint that is loaded after a script has made its iterator
        assert take(batches, 3) == whole[start : start + 3]
        assert batches.taken == start + 3


def test_each_image_is_augmented_anew_and_by_the_seed():
    drawn = [x["drawn"] for batch in take(training_loader(detectron2s(), 0)) for x in batch]
    assert len(set(drawn)) == 80
    assert len({x for triple in drawn for x in triple}) == 240
    other = [x["drawn"] for batch in take(training_loader(detectron2s(), 1)) for x in batch]
    assert not set(drawn) & set(other)


def test_random_numbers_of_the_process_go_on_as_if_no_image_had_been_loaded():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = augment({})
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    for workers in (0, 1):
        take(training_loader(detectron2s(workers=workers), 0), 2)
    assert augment({}) == expected


def test_an_image_that_the_mapper_drops_is_replaced_by_the_same_one_each_time():
    def mapper(x):
        return None if x["index"] % 3 == 0 else x

    whole = indices(take(training_loader(detectron2s(mapper=mapper), 0)))
    assert not {i for batch in whole for i in batch if i % 3 == 0}
    loader = training_loader(detectron2s(mapper=mapper), 0)
    loader.batch_sampler.start = 5
    assert indices(take(loader, 5)) == whole[5:10]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_collate_function_of_the_users_own_is_called(grouped):
    loader = training_loader(detectron2s(grouped, collate_fn=len), 0)
    assert take(loader, 3) == [4, 4, 4]


def test_a_finite_sampler_ends():
    class Once(torch.utils.data.Sampler):
        def __iter__(self):
            return iter(range(10))

    loader = training_loader(detectron2s(grouped=False, sampler=Once()), 0)
    assert indices(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    loader.batch_sampler.start = 9
    assert take(loader) == []


def test_an_image_without_a_shape_is_an_error_in_a_group():
    dicts = [*DICTS[:5], {"index": 5, "file_name": "a.jpg"}]
    with pytest.raises(InputError, match=r"a\.jpg has no width and height"):
        take(training_loader(detectron2s(dicts=dicts), 0))


def own_loaders():
    images, sampler = MapDataset(DatasetFromList(DICTS), augment), TrainingSampler(23, seed=1)
    yield iter([])
    yield torch.utils.data.DataLoader([1, 2])
    yield build_batch_data_loader(images, sampler, 4, drop_last=False)
    yield build_batch_data_loader(ToIterableDataset(images, sampler, shard_sampler=False), None, 4)
    yield detectron2s(dicts=[{"index": 0}])  # its shapes are known only after loading


@pytest.mark.parametrize("loader", list(own_loaders()))
def test_a_loader_of_another_kind_is_left_alone(loader):
    assert training_loader(loader, 0) is None
