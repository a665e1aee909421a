"""What the losses of a part of a batch need to know of the whole, so that their mean is the loss of the whole batch.

A Hungarian matching gives every object a query of its own, so the number of queries with an object is known before any
is computed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from detr.modeling.meta_arch import Detr


class Answers(NamedTuple):
    """How many queries must find an object, and how many must say no-object: means over the parts of a batch."""

    objects: float
    no_objects: float


@dataclass(frozen=True)
class WholeBatch:
    """A rank's batch that is computed in parts.

    parts: their number; objects: in all of them
    queries, noised: of the object queries (of one group), and of the denoising queries
    copies: denoising queries that must find an object / objects
    """

    parts: int
    objects: int
    queries: Answers
    noised: Answers
    copies: float

    @classmethod
    def of(cls, model: "Detr", parts: Sequence[Sequence[dict[str, Any]]]) -> "WholeBatch":
        """parts: lists of inputs, as ``Detr.forward`` takes them in training."""
        sizes = [[len(x["instances"]) for x in part] for part in parts]
        every, n, q = [size for part in sizes for size in part], len(parts), model.query_embed.num_embeddings
        matched = sum(min(size, q) for size in every)
        denoising = None if model.training_queries is None else model.training_queries.denoising
        positives, kinds = 0, 1
        if denoising is not None:
            # Each part chooses its number of copies as the batch that it is for itself.
            positives, kinds = sum(sum(denoising.positives(part, 2 * q)) for part in sizes), 1 + denoising.negatives
        return cls(
            parts=n,
            objects=sum(every),
            queries=Answers(matched / n, (len(every) * q - matched) / n),
            noised=Answers(positives / n, positives * (kinds - 1) / n),
            copies=max(positives, 1) / max(sum(every), 1),
        )

    def of_noised(self) -> "WholeBatch":
        """The same with the denoising queries in the place of the object queries."""
        return replace(self, queries=self.noised)


@contextmanager
def part_of_batch(model: "Detr", parts: Sequence[Sequence[dict[str, Any]]]) -> Iterator[None]:
    """Inside, the model's losses are such that their mean over the parts is the loss of all parts as one batch.

    The criterion must be a ``SetCriterion``.
    """
    model.criterion.whole_batch = WholeBatch.of(model, parts)
    try:
        yield
    finally:
        model.criterion.whole_batch = None
