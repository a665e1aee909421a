"""What each object query predicts over many images (paper, fig. 7).

I  images, Q object queries
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import box_convert

from detr.errors import InputError


@dataclass(frozen=True)
class QueryUse:
    """All predictions of all queries. On the CPU.

    boxes: (I, Q, 4) cxcywh in [0, 1] of each image; scores: (I, Q); classes: (I, Q) int64 in [0, K)
    threshold: the least score of an object; a query with a lower one in an image is not used there
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    threshold: float

    @classmethod
    def of_predictions(cls, predictions: Iterable[Instances], threshold: float) -> "QueryUse":
        """predictions: of one image or more, as ``Predictor.predict_queries`` yields them."""
        boxes, scores, classes = [], [], []
        for instances in predictions:
            height, width = instances.image_size
            xyxy = instances.pred_boxes.tensor
            boxes.append(box_convert(xyxy / xyxy.new_tensor([width, height] * 2), "xyxy", "cxcywh"))
            scores.append(instances.scores)
            classes.append(instances.pred_classes)
        return cls(torch.stack(boxes), torch.stack(scores), torch.stack(classes), threshold)

    @property
    def used(self) -> Tensor:
        """(I, Q) bool: where a query's prediction is kept as an object."""
        return self.scores >= self.threshold

    def share(self) -> Tensor:
        """(Q,): the share of the images in which each query is used."""
        return self.used.float().mean(0)

    def order(self) -> list[int]:
        """The queries, the most used ones first; of equally used ones those of higher mean scores."""
        shares, scores = self.share().tolist(), self.scores.mean(0).tolist()
        return sorted(range(len(shares)), key=lambda query: (-shares[query], -scores[query]))

    def dead(self) -> list[int]:
        """The queries that no image uses."""
        return [query for query, used in enumerate(self.used.any(0).tolist()) if not used]

    def most_frequent_class(self, query: int) -> tuple[int, float] | None:
        """The class that it predicts most often where it is used, and the share of these images; None if never."""
        classes = self.classes[self.used[:, query], query]
        if not len(classes):
            return None
        counts = classes.bincount()
        return int(counts.argmax()), float(counts.max() / len(classes))


def parse_queries(texts: Sequence[str], count: int) -> list[int] | None:
    """The numbers of queries on a command line, "all" alone for each of the ``count``; None where none is named.

    Raises InputError for what is no number of a query.
    """
    if list(texts) == ["all"]:
        return list(range(count))
    numbers = {str(query): query for query in range(count)}
    unknown = [text for text in texts if text not in numbers]
    if unknown:
        raise InputError(f"there is no query {unknown[0]}: name numbers from 0 to {count - 1}, or all")
    return [numbers[text] for text in texts] or None
