"""Whether a training learns: how queries and objects are matched, as metrics, and warnings where it is stuck."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from detr.engine.health_checks import health_warnings
from detr.engine.matching_statistics import MatchingStatistics, Step
from detr.modeling.matcher import Matches
from detr.modeling.meta_arch import Detr

FEWEST_STEPS, MOST_STEPS = 500, 10_000  # between two checks
CHECKS = 10  # of a training, as far as these limits allow

logger = logging.getLogger(__name__)


class MatchingObserver:
    """Listens to the criterion of a ``Detr`` in training. It changes nothing and draws no random number.

    Tensors are copied to the host while the device goes on; it has passed the copies by the end of the step, since
    the losses are written then.
    """

    def __init__(self, model: nn.Module) -> None:
        """model: a ``Detr``, or one in a wrapper such as DistributedDataParallel. Raises ValueError for another one."""
        found = find_detr(model)
        if found is None:
            raise ValueError(f"there is no Detr in a {type(model).__name__}")
        self.statistics = MatchingStatistics(found.query_embed.num_embeddings, found.num_classes)
        self.names: list[Any] = []
        self.waiting: list[tuple[Any, ...]] = []
        self.handles = [
            found.register_forward_pre_hook(self._before_forward),
            found.criterion.register_forward_hook(self._after_matching, with_kwargs=True),
        ]

    def close(self) -> None:
        """Listens no longer."""
        for handle in self.handles:
            handle.remove()

    def step(self) -> dict[str, float]:
        """The metrics of what was matched since the last call, by name; of several batches those of the last one."""
        waiting, self.waiting = self.waiting, []
        metrics: dict[str, float] = {}
        for event, names, sizes, *tensors in waiting:
            if event is not None:
                event.synchronize()
            best, (layer, image, query, target), iou, labels, centers = (x.numpy() for x in tensors)
            if query.max(initial=0) >= self.statistics.num_queries:
                continue  # a subclass that matches others than the object queries
            names = names if len(names) == len(sizes) else [None] * len(sizes)
            metrics |= self.statistics.add(Step(best, layer, image, query, target, iou, labels, centers, names))
        return metrics

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        inputs = args[0] if args and isinstance(args[0], list) else []
        self.names = [x.get("file_name", x.get("image_id")) for x in inputs if isinstance(x, Mapping)]

    @torch.no_grad()
    def _after_matching(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not criterion.training or not (isinstance(output, tuple) and output and isinstance(output[-1], Matches)):
            return  # an evaluation, or a criterion of the user's own that returns something else
        given = dict(zip(("logits", "boxes", "targets"), args, strict=False)) | kwargs
        if not {"logits", "boxes", "targets"} <= given.keys():
            return
        boxes, targets, matches = given["boxes"], given["targets"], output[-1]
        best = given["logits"][-1, :, : self.statistics.num_queries].argmax(-1)  # (N, Q), of the group that is kept
        last = matches.of_last_layer(len(boxes))
        predicted = box_convert(boxes[-1, last.image, last.query].float(), "cxcywh", "xyxy")
        truth = box_convert(targets.boxes[last.target], "cxcywh", "xyxy")
        pairs = torch.stack([matches.layer, matches.image, matches.query, matches.target])
        iou = box_iou(predicted, truth).diagonal()
        tensors = [_to_host(x) for x in (best, pairs, iou, targets.labels, targets.boxes[:, :2])]
        event = torch.cuda.current_stream(boxes.device).record_event() if boxes.is_cuda else None
        self.waiting.append((event, self.names, targets.sizes, *tensors))


class HealthHook(HookBase):
    """Puts the numbers of ``MatchingObserver`` into the event storage, and warns once of each thing that is wrong.

    They are of this process's images. Where the model is no ``Detr``, or its box model is frozen, it does nothing.
    """

    def __init__(self, model: nn.Module, steps: int | None = None) -> None:
        """
        model: as of ``MatchingObserver``
        steps: iterations between two checks; by default a tenth of the training, from 500 to 10,000
        """
        self.model, self.steps = model, steps
        self.observer: MatchingObserver | None = None
        self.warned: set[str] = set()

    def before_train(self) -> None:
        trainer, detr = self.trainer, find_detr(self.model)
        if detr is None or detr.freeze_detr:
            return
        self.observer = MatchingObserver(self.model)
        length = (trainer.max_iter - trainer.start_iter) // CHECKS
        self.period = self.steps or min(max(length, FEWEST_STEPS), MOST_STEPS)

    def after_step(self) -> None:
        if self.observer is None:
            return
        trainer = self.trainer
        trainer.storage.put_scalars(**self.observer.step())
        if (trainer.iter + 1 - trainer.start_iter) % self.period == 0:
            self._check()

    def after_train(self) -> None:
        if self.observer is not None:
            self.observer.close()

    def _check(self) -> None:
        assert self.observer is not None
        trainer, statistics = self.trainer, self.observer.statistics
        histories, latest = trainer.storage.histories(), trainer.storage.latest()
        losses = [value for value, _ in histories["total_loss"].values()] if "total_loss" in histories else []
        found = health_warnings(
            statistics.take_sums(),
            steps=self.period,
            # A training that is resumed has had its beginning before.
            losses=losses if trainer.start_iter == 0 else [],
            dead=statistics.dead_queries(),
            progress=(trainer.iter + 1) / trainer.max_iter,
            learning_rate=latest["lr"][0] if "lr" in latest else None,
        )
        for name, text in found.items():
            if name not in self.warned:
                logger.warning("after iteration %d: %s", trainer.iter + 1, text)
        self.warned.update(found)


def find_detr(model: nn.Module) -> Detr | None:
    """The ``Detr`` in a model, which may be wrapped; None where there is none with a criterion to listen to."""
    return next((x for x in model.modules() if isinstance(x, Detr) and isinstance(x.criterion, nn.Module)), None)


def _to_host(x: Tensor) -> Tensor:
    return x.detach().to("cpu", non_blocking=True)  # from a GPU into pinned memory
