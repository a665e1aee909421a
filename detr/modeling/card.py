"""What a model is besides its tensors: the names of its classes, how it prepares images, and its thresholds."""

from dataclasses import dataclass, replace
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from detr.config import changed_from_defaults
from detr.modeling.postprocessing import which_are_things

# Keys of MODEL.DETR that only a training, or a folder of this machine, gives a meaning.
_OF_TRAINING = (
    *("ACTIVATION_CHECKPOINT", "ANCHOR_QUERIES", "DENOISING", "EXPORTED", "FREEZE_DETR", "FROZEN_WEIGHTS"),
    "QUERY_GROUPS",
)


@dataclass(frozen=True)
class ModelCard:
    """It travels with the weights, in checkpoints and in exported models.

    class_names: of the K classes in the order of their labels, of a panoptic model things and stuff; None if unknown
    config: YAML of what differs from the defaults of Detectron2 and ``add_detr_config``, of MODEL, INPUT and the number
        of detections. It builds the plain DETR, without what is for training alone; "" if unknown
    score_threshold: instances of a lower score are not worth showing; None if nobody has chosen one
    """

    class_names: tuple[str, ...] | None = None
    config: str = ""
    score_threshold: float | None = None


class HasCard:
    """A model with a ``card``, which a script may replace (``dataclasses.replace``) before it saves the model."""

    num_classes: int  # K, without no-object
    _card = ModelCard()
    _data_sets: tuple[str, ...] = ()
    names_of_weights: tuple[str, ...] | None = None  # of the weights that were loaded

    def __new__(cls, *args: Any, **kwargs: Any) -> "HasCard":
        """Makes the card of cfg here, so that the constructor of a subclass need not know of it."""
        model = super().__new__(cls)
        cfg = args[0] if args else kwargs.get("cfg")
        if isinstance(cfg, CfgNode):
            # Not by setattr: torch's works on modules that are initialized.
            model.__dict__ |= {"_card": make_card(cfg), "_data_sets": (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)}
        return model

    @property
    def card(self) -> ModelCard:
        """Its class names are those that were set, else those of a data set, else those of the weights.

        Detectron2 reads the classes of a COCO file when it loads the data, which may be after the model is built.
        """
        if self._card.class_names is not None:
            return self._card
        names = dataset_classes(self.num_classes, self._data_sets)
        if names is None and self.names_of_weights and len(self.names_of_weights) == self.num_classes:
            names = self.names_of_weights
        return replace(self._card, class_names=names)

    @card.setter
    def card(self, card: ModelCard) -> None:
        self._card = card

    def forget_classes(self) -> None:
        """From here on the classes are those of the weights that are loaded next."""
        self._card, self._data_sets = replace(self._card, class_names=None), ()


def make_card(cfg: CfgNode) -> ModelCard:
    """The card of a model that is built from ``cfg``; its classes are those of its first data set that is known."""
    keys, data_sets = cfg.MODEL.DETR, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    config = without_training(cfg)
    things = which_are_things(keys.NUM_CLASSES, data_sets, required=False, num_things=keys.PANOPTIC.THINGS)
    if not all(things) and things == sorted(things, reverse=True):
        _node(config, "MODEL", "DETR", "PANOPTIC").THINGS = sum(things)
    names = dataset_classes(keys.NUM_CLASSES, data_sets)
    return ModelCard(names, str(config.dump()), keys.INSTANCE_SCORE_THRESHOLD or None)


def without_training(cfg: CfgNode) -> CfgNode:
    """What differs from the defaults and counts in inference: MODEL, INPUT and the number of detections."""
    changed = changed_from_defaults(cfg)
    kept = CfgNode({name: changed[name] for name in ("MODEL", "INPUT") if name in changed})
    limit = changed.get("TEST", {}).get("DETECTIONS_PER_IMAGE")
    if limit is not None:
        _node(kept, "TEST").DETECTIONS_PER_IMAGE = limit
    for section, left_out in (("MODEL",), ("DEVICE", "WEIGHTS")), (("MODEL", "DETR"), _OF_TRAINING):
        node = _node(kept, *section)
        for key in left_out:
            node.pop(key, None)
    kept.VERSION = cfg.VERSION  # else Detectron2 guesses it
    return kept


def _node(cfg: CfgNode, *names: str) -> CfgNode:
    for name in names:
        cfg = cfg.setdefault(name, CfgNode())
    return cfg


def dataset_classes(num_classes: int, dataset_names: tuple[str, ...]) -> tuple[str, ...] | None:
    """The classes' names in the metadata of the first data set that has so many; None where none does."""
    for name in dataset_names:
        metadata = MetadataCatalog.get(name)
        for key in ("thing_classes", "stuff_classes"):  # of a panoptic set the latter are things and stuff
            names = metadata.get(key)
            if isinstance(names, (list, tuple)) and len(names) == num_classes and {*map(type, names)} <= {str}:
                return tuple(names)
    return None
