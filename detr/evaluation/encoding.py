"""Evaluators that encode masks in threads while the network computes the next images; results keep the set's order."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

DATASET_INDEX = "dataset_index"  # of an input: the image's number in the data set, where batches change the order
THREADS = 2
AHEAD = 2  # images that may wait: 100 masks of 640 x 480 pixels are 30 MB


class EncodingEvaluator:
    """Comes before one of Detectron2's evaluators that has a list of ``_predictions`` with an ``image_id`` each."""

    _predictions: list[dict[str, Any]]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self._pool = ThreadPoolExecutor(THREADS)
        self._encoded: deque[Future[dict[str, Any]]] = deque()
        self._places: dict[Any, int] = {}

    def encode_later(self, x: dict[str, Any], encode: Callable[..., dict[str, Any]], *outputs: Any) -> None:
        """Appends a prediction, in the order of the calls.

        x: the input, with its ``image_id``; encode: image_id, *outputs -> the prediction. It runs in a thread, on the
            CPU, while nobody may change the outputs

        Raises what an earlier one has raised.
        """
        self._places[x["image_id"]] = x.get(DATASET_INDEX, len(self._places))
        self._encoded.append(self._pool.submit(encode, x["image_id"], *outputs))
        self._take(AHEAD)

    def evaluate(self, *args: Any, **options: Any) -> Any:
        """As of the evaluator, with the predictions in the order of the data set."""
        self.collect()
        return super().evaluate(*args, **options)  # type: ignore[misc]

    def collect(self) -> None:
        """Waits for the predictions, and sorts them."""
        self._take(0)
        self._predictions.sort(key=lambda x: self._places.get(x["image_id"], 0))

    def _take(self, waiting: int) -> None:
        """waiting: how many images may still be encoded afterwards"""
        while len(self._encoded) > waiting:
            self._predictions.append(self._encoded.popleft().result())
