"""The loader of test images: batches of one size, so that none is padded; the next is decoded while one is computed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader

from detr.data.dataset_mapper import DetrDatasetMapper
from detr.data.images import size_in_file
from detr.data.loading import load_dataset
from detr.data.transforms import resized_shape
from detr.evaluation.encoding import DATASET_INDEX


def build_evaluation_loader(cfg: CfgNode, dataset_name: str) -> "EvaluationLoader":
    """As Detectron2's test loader, with batches of up to TEST.IMS_PER_BATCH images a rank."""
    dicts = load_dataset(dataset_name)
    share = InferenceSampler(len(dicts))  # of this rank
    batches = [[index] for index in share]
    if cfg.TEST.IMS_PER_BATCH > 1:
        batches = group_by_size(dicts, list(share), cfg)
        dicts = [{**x, DATASET_INDEX: index} for index, x in enumerate(dicts)]
    mapped = MapDataset(DatasetFromList(dicts, copy=False), DetrDatasetMapper(cfg, is_train=False))
    return EvaluationLoader(mapped, batch_sampler=batches, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=list)


def group_by_size(dicts: Sequence[dict[str, Any]], share: Sequence[int], cfg: CfgNode) -> list[list[int]]:
    """Batches of images that have one size after resizing; the largest images come first.

    dicts: of the data set; share: the images of this rank. One whose file cannot be read is alone
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in share:
        groups.setdefault(_resized(dicts[index], cfg) or (0, index), []).append(index)
    most = cfg.TEST.IMS_PER_BATCH
    largest_first = sorted(groups.items(), key=lambda item: (-item[0][0] * item[0][1], item))
    return [group[i : i + most] for _, group in largest_first for i in range(0, len(group), most)]


def _resized(x: dict[str, Any], cfg: CfgNode) -> tuple[int, int] | None:
    """(height, width) that the mapper gives an image; Detectron2's panoptic sets do not have those of the file."""
    height, width = x.get("height"), x.get("width")
    if height is None or width is None:
        size = size_in_file(x["file_name"])
        if size is None:
            return None
        width, height = size
    if not cfg.INPUT.MIN_SIZE_TEST:  # no resizing
        return height, width
    return resized_shape(height, width, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


class EvaluationLoader(DataLoader):
    """torch's, which also without workers decodes the next batch while the caller works on one."""

    @property
    def num_images(self) -> int:
        """Of this rank."""
        return sum(len(batch) for batch in self.batch_sampler or ())

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        batches = super().__iter__()
        return batches if self.num_workers else _decoded_ahead(batches)


def _decoded_ahead(batches: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch
