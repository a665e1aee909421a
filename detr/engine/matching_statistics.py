"""What the matching of a training says of its health: numbers of each step, and sums over many for the warnings.

L  decoder layers, N images, Q object queries, K classes without no-object
M  ground-truth objects of the batch, P matched pairs of all layers
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np

WINDOW = 1000  # training images in which a query has to do something, or it is dead
CELLS = 64  # to an image's side: an object is known again by its class and the cell of its center
MAX_REMEMBERED = 100_000  # objects; as a dict of whole numbers about 15 MB

# What the numbers are called in the event storage.
DEAD, NO_OBJECT, IOU = "health/dead_queries", "health/no_object", "health/matched_iou"
LAYERS, EPOCHS = "health/layer_stability", "health/epoch_stability"


@dataclass
class Step:
    """A training step's matching, on the host.

    best: (N, Q), the best class of each query, K for no-object
    layer, image, query, target: (P,) each, as of ``Matches``
    iou: IoU of the last layer's pairs, (P / L,)
    labels: (M,); centers: (M, 2), x and y in [0, 1] of the image as the network sees it
    names: of the N images, None where they have none
    """

    best: np.ndarray
    layer: np.ndarray
    image: np.ndarray
    query: np.ndarray
    target: np.ndarray
    iou: np.ndarray
    labels: np.ndarray
    centers: np.ndarray
    names: list[Hashable]


@dataclass
class Sums:
    """Sums over the steps between two checks. ``matched`` and all after it are of the last layer's pairs.

    objects: true ones; most_objects: of one image; predicted: queries whose best class is one of the K
    named: pairs whose query names a class, right: the right one; iou: summed
    compared: objects that are known again; same: those that the same query as the last time got
    by_query, by_class: pairs of each query (Q,) and each class (K,)
    """

    num_queries: int
    num_classes: int
    objects: int = 0
    most_objects: int = 0
    predicted: int = 0
    matched: int = 0
    named: int = 0
    right: int = 0
    iou: float = 0.0
    compared: int = 0
    same: int = 0
    by_query: np.ndarray = field(init=False)
    by_class: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.by_query = np.zeros(self.num_queries, dtype=np.int64)
        self.by_class = np.zeros(self.num_classes, dtype=np.int64)


class MatchingStatistics:
    """Follows the matching from step to step. It begins anew in a training that is resumed."""

    def __init__(self, num_queries: int, num_classes: int) -> None:
        """num_queries: Q; num_classes: K"""
        self.num_queries, self.num_classes = num_queries, num_classes
        self.images = 0  # so far
        self.last_active = np.zeros(num_queries, dtype=np.int64)  # ``images`` when a query last did something
        self.remembered: dict[int, int] = {}  # an object of an image -> its query when the image was seen last
        self.sums = Sums(num_queries, num_classes)

    def dead_queries(self) -> float | None:
        """The share of queries that were neither matched nor predicted an object in the last ``WINDOW`` images; None
        before there were so many."""
        if self.images < WINDOW:
            return None
        return float((self.images - self.last_active >= WINDOW).mean())

    def take_sums(self) -> Sums:
        """The sums since the last call, which begin anew."""
        sums, self.sums = self.sums, Sums(self.num_queries, self.num_classes)
        return sums

    def add(self, step: Step) -> dict[str, float]:
        """Counts a step. Returns its numbers by name, shares in [0, 1]; those that it has no data for are left out."""
        sums, count = self.sums, len(step.best)
        is_object = step.best != self.num_classes
        layers = int(step.layer.max(initial=0)) + 1
        last = step.layer == layers - 1
        image, query, target = step.image[last], step.query[last], step.target[last]
        labels, best = step.labels[target], step.best[image, query]

        self.last_active[is_object.any(0)] = self.images + count
        self.last_active[query] = self.images + count
        self.images += count
        metrics = {NO_OBJECT: 1 - float(is_object.mean())}
        dead = self.dead_queries()
        if dead is not None:
            metrics[DEAD] = dead
        if len(query):
            metrics[IOU] = float(step.iou.mean())
            sums.most_objects = max(sums.most_objects, int(np.bincount(image).max()))
        agreed = self._agreement(step, layers)
        if agreed is not None:
            metrics[LAYERS] = agreed
        compared, same = self._compare(step, image, query, target)
        if compared:
            metrics[EPOCHS] = same / compared

        sums.objects += len(step.labels)
        sums.predicted += int(is_object.sum())
        sums.matched += len(query)
        sums.named += int((best != self.num_classes).sum())
        sums.right += int((best == labels).sum())
        sums.iou += float(step.iou.sum())
        sums.compared += compared
        sums.same += same
        sums.by_query += np.bincount(query, minlength=self.num_queries)
        sums.by_class += np.bincount(labels, minlength=self.num_classes)
        return metrics

    def _agreement(self, step: Step, layers: int) -> float | None:
        """The share of objects that a decoder layer and the one before it match to the same query (compare the
        instability of DN-DETR, arXiv 2203.01305, sec. 3, which counts the others)."""
        if layers < 2 or not len(step.layer):
            return None
        query = np.full((layers, len(step.labels)), -1)  # where an image has more objects than queries, some have none
        query[step.layer, step.target] = step.query
        both = (query[1:] >= 0) & (query[:-1] >= 0)
        return float((query[1:] == query[:-1])[both].mean()) if both.any() else None

    def _compare(self, step: Step, image: np.ndarray, query: np.ndarray, target: np.ndarray) -> tuple[int, int]:
        """How many objects were seen before at the same place, and how many of these the same query got.

        An image that was flipped in between has its objects elsewhere, where other queries are right to get them.
        """
        cells = (step.centers[target] * CELLS).astype(int).tolist()
        compared = same = 0
        for index, number, label, cell in zip(
            image.tolist(), query.tolist(), step.labels[target].tolist(), cells, strict=True
        ):
            if step.names[index] is None:
                continue
            key = hash((step.names[index], label, *cell))
            before = self.remembered.get(key)
            if before is not None:
                compared += 1
                same += before == number
            if before is not None or len(self.remembered) < MAX_REMEMBERED:
                self.remembered[key] = number
        return compared, same
