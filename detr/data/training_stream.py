"""The stream of training images: the same on every run from the same seed, with any workers, from any position."""

import itertools
import random
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from detectron2.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
    _MapIterableDataset,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from detr.data.pinning import pinnable
from detr.errors import InputError
from detr.random_state import seeded

Item = tuple[int, int]  # position in the stream of all ranks, index in the data set

# Attributes of a DataLoader that are arguments of another one.
_OPTIONS = (
    *("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "prefetch_factor"),
    *("persistent_workers", "pin_memory_device", "in_order"),
)


class SeededImages(Dataset[Any]):
    """A data set whose images are loaded and augmented by the random numbers of their position in the stream."""

    def __init__(self, images: Any, seed: int) -> None:
        """images: map-style, such as Detectron2's MapDataset around the list of dicts"""
        self.images, self.seed = images, seed

    def __getitem__(self, item: Item) -> Any:
        position, index = item
        with seeded(self.seed, position):
            if type(self.images) is not MapDataset:
                return self.images[index]
            # Where the mapper gives None, it draws another image, of those that have not failed so far.
            self.images._rng = random.Random(random.getrandbits(64))
            image = self.images[index]
            if len(self.images._fallback_candidates) < len(self.images):
                self.images._fallback_candidates = set(range(len(self.images)))
            return image

    @property
    def dicts(self) -> Any:
        """The data set before it is mapped."""
        return self.images._dataset if type(self.images) is MapDataset else self.images


class Batches:
    """The batches of this rank: for each image its position in the stream of all ranks and its index in the data set.

    They begin with the one that has the number ``start``, as if those before it had been taken.
    """

    start = 0

    def __init__(self, sampler: Iterable[int], batch_size: int, seed: int, dicts: Any = None) -> None:
        """
        sampler: of this rank; gives the same indices each time that it is iterated from its start
        batch_size: of this rank
        dicts: where images of one shape (wide or not) are batched together, as by AspectRatioGroupedDataset: the data
            set, with width and height
        """
        self.sampler, self.batch_size, self.seed, self.dicts = sampler, batch_size, seed, dicts

    def __iter__(self) -> Iterator[list[Item]]:
        with seeded(self.seed):  # some samplers draw a seed of their own
            indices = iter(self.sampler)
            first = list(itertools.islice(indices, 1))
        rank, ranks = comm.get_rank(), comm.get_world_size()
        indices, size = itertools.chain(first, indices), self.batch_size
        if self.dicts is not None:
            items = zip(itertools.count(rank, ranks), indices, strict=False)
            yield from itertools.islice(self._grouped(items), self.start, None)
            return
        skipped = self.start * size  # faster than image by image
        positions = itertools.count(rank + skipped * ranks, ranks)
        items = zip(positions, itertools.islice(indices, skipped, None), strict=False)
        while len(batch := list(itertools.islice(items, size))) == size:
            yield batch

    def _grouped(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        bucket_of = dict[int, list[Item]]()  # image -> the bucket of its shape
        tall, wide = list[Item](), list[Item]()
        for item in items:
            index = item[1]
            bucket = bucket_of.get(index)
            if bucket is None:
                bucket = bucket_of[index] = wide if _is_wide(self.dicts[index]) else tall
            bucket.append(item)
            if len(bucket) == self.batch_size:
                yield bucket[:]
                bucket.clear()


def _is_wide(x: dict[str, Any]) -> bool:
    if "width" not in x or "height" not in x:
        raise InputError(
            f"{x.get('file_name', 'an image')} has no width and height in its dict, as other images do: give them, or "
            "set DATALOADER.ASPECT_RATIO_GROUPING False"
        )
    return bool(x["width"] > x["height"])


class TrainingLoader(DataLoader[Any]):
    """Loads ``Batches`` of ``SeededImages``; what they hold depends on neither the workers nor their number.

    An iteration begins with the batch number that ``start`` of the batches is when its first one is taken.
    """

    dataset: SeededImages
    batch_sampler: Batches

    def __init__(self, images: SeededImages, batches: Batches, **options: Any) -> None:
        # A generator of its own, else workers' seeds would be drawn from the training's random numbers.
        generator = torch.Generator().manual_seed(batches.seed)
        if options.get("pin_memory"):
            options["collate_fn"] = partial(pinnable, options["collate_fn"])
        super().__init__(images, batch_sampler=batches, generator=generator, **options)

    def __iter__(self) -> "TrainingIterator":  # type: ignore[override]
        return TrainingIterator(self)

    def reload(self, other: "TrainingLoader") -> None:
        """Takes the images and batches of another loader."""
        vars(self.dataset).update(vars(other.dataset))
        vars(self.batch_sampler).update(vars(other.batch_sampler))


class TrainingIterator(Iterator[Any]):
    """Batches; ``taken``: how many have been taken since the beginning of the training.

    Nothing is loaded before the first one is asked for, so that one made before a checkpoint is loaded begins there.
    """

    def __init__(self, loader: TrainingLoader) -> None:
        self.loader, self.taken = loader, loader.batch_sampler.start
        self._batches: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._batches is None:
            self.taken = self.loader.batch_sampler.start
            self._batches = DataLoader.__iter__(self.loader)
        batch = next(self._batches)
        self.taken += 1
        return batch


def training_loader(loader: Any, seed: int) -> TrainingLoader | None:
    """The loader that gives the batches of one of Detectron2's, ``build_detection_train_loader``'s, from any position.

    Their images are augmented by random numbers of ``seed``. Where Detectron2's loader groups images by shape with
    several workers, it takes them in another order than its sampler's; this one does not.

    Returns None for a loader of another kind.
    """
    collate = None
    if type(loader) is _MapIterableDataset and type(loader._dataset) is AspectRatioGroupedDataset:
        loader, collate = loader._dataset, loader._map_func
    grouped = type(loader) is AspectRatioGroupedDataset
    outer, loader = loader, loader.dataset if grouped else loader
    if type(loader) is not DataLoader or type(loader.dataset) is not ToIterableDataset:
        return None
    stream: Any = loader.dataset
    if not (stream.shard_sampler and (grouped or loader.drop_last) and outer.batch_size):
        return None
    images = SeededImages(stream.dataset, seed)
    if grouped and not _has_shapes(images.dicts):
        return None
    return TrainingLoader(
        images,
        Batches(stream.sampler, outer.batch_size, seed, images.dicts if grouped else None),
        collate_fn=(collate or _as_list) if grouped else loader.collate_fn,
        **{name: getattr(loader, name) for name in _OPTIONS},
    )


def _has_shapes(dicts: Any) -> bool:
    """Whether the shapes of images can be read without loading them."""
    return type(dicts) is DatasetFromList and len(dicts) > 0 and {"width", "height"} <= dicts[0].keys()


def _as_list(batch: list[Any]) -> list[Any]:
    return batch
