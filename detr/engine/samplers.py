"""Detectron2's samplers of training images, with DETR's data sets."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler

from detr.errors import InputError

# DATALOADER.SAMPLER_TRAIN -> the key that it reads, and Detectron2's config lacks
SAMPLERS = {
    "TrainingSampler": "",
    "RepeatFactorTrainingSampler": "",
    "RandomSubsetTrainingSampler": "DATALOADER.RANDOM_SUBSET_RATIO",
    "WeightedTrainingSampler": "DATASETS.TRAIN_REPEAT_FACTOR",
    "WeightedCategoryTrainingSampler": "DATASETS.TRAIN_REPEAT_FACTOR",
}


def check_sampler(cfg: CfgNode) -> None:
    """Raises InputError for an unknown sampler, and for one that reads a key that Detectron2's config does not have."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name not in SAMPLERS:
        raise InputError(f"DATALOADER.SAMPLER_TRAIN is {name!r}: it must be one of {', '.join(SAMPLERS)}")
    section, _, key = SAMPLERS[name].partition(".")
    if key and key not in cfg[section]:
        raise InputError(
            f"DATALOADER.SAMPLER_TRAIN {name} reads {section}.{key}, which the config does not have: take "
            "TrainingSampler or RepeatFactorTrainingSampler, or add the key to the config in a script of your own"
        )


def panoptic_sampler(cfg: CfgNode, dicts: list[dict[str, Any]]) -> RepeatFactorTrainingSampler | None:
    """The sampler of a panoptic training set where Detectron2 would look for annotations; None leaves it the choice.

    Raises InputError for WeightedCategoryTrainingSampler, which loads the data sets itself.
    """
    keys = cfg.DATALOADER
    if keys.SAMPLER_TRAIN == "WeightedCategoryTrainingSampler":
        raise InputError(
            "DATALOADER.SAMPLER_TRAIN WeightedCategoryTrainingSampler cannot read panoptic data sets: take "
            "RepeatFactorTrainingSampler or TrainingSampler"
        )
    if keys.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return None
    count = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    segments = [{"annotations": x["segments_info"]} for x in dicts]
    return RepeatFactorTrainingSampler(
        count(segments, keys.REPEAT_THRESHOLD, sqrt=keys.REPEAT_SQRT), seed=cfg.SEED if cfg.SEED >= 0 else None
    )
