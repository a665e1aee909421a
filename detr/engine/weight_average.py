"""An exponential moving average (EMA) of the weights: evaluated in their place, and saved beside them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn

from detr.checkpoint.wrappers import unwrapped_names
from detr.errors import InputError
from detr.evaluation.evaluators import is_detr

EMA = "model_ema"  # the average's key in a checkpoint, by which the loader knows what it is

logger = logging.getLogger(__name__)


class WeightAverage:
    """After every step, average = decay * average + (1 - decay) * weights, for all parameters that are trained.

    Frozen parameters and buffers have no average: those of the model belong to it. Every process has the same one, so
    that nothing is sent. It takes the memory of the trained parameters once more.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """model: without DistributedDataParallel around it"""
        self.model, self.decay = model, decay
        self._parameters: list[Tensor] = []
        self._averages: list[Tensor] = []
        self._loaded: Mapping[str, Tensor] = {}

    def start(self) -> None:
        """From the average of the checkpoint that was resumed from, else from the weights as they are; once."""
        if self._averages:
            return
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        names = unwrapped_names(trained)
        loaded = {name: self._loaded[name] for name in names.values() if name in self._loaded}
        if loaded and len(loaded) < len(names):
            logger.warning("the average (EMA) of %d new parameters starts anew", len(names) - len(loaded))
        self._parameters, self._loaded = list(trained.values()), {}
        with torch.no_grad():
            self._averages = [torch.empty_like(p).copy_(loaded.get(names[key], p)) for key, p in trained.items()]

    @torch.no_grad()
    def update(self) -> None:
        torch._foreach_lerp_(self._averages, self._parameters, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model's weights are the average; afterwards they are its own again, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # In place and one by one: others may hold the tensors, and a second copy of all would need memory.
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            weights = parameter.clone()
            parameter.copy_(average)
            average.copy_(weights)
        self.model.state_dict()  # brings along what follows from others, as the query_embed of anchors

    def state_dict(self) -> dict[str, Tensor]:
        """The whole model with the average in it, as any checkpoint of weights."""
        self.start()
        with self.applied():
            state: dict[str, Tensor] = self.model.state_dict()
            return {name: value.clone() for name, value in unwrapped(state).items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._loaded, self._averages = unwrapped(state), []


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By names that are the same whether or not modules are compiled."""
    return {name: state[key] for key, name in unwrapped_names(state).items()}


class AverageHook(HookBase):
    """Updates a ``WeightAverage`` after every step, before hooks that evaluate or save."""

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def before_train(self) -> None:
        self.average.start()

    def after_step(self) -> None:
        self.average.update()


def with_average(average: WeightAverage | None, evaluate: Callable[[], Any]) -> Callable[[], Any]:
    """The evaluation of the average, where there is one."""
    if average is None:
        return evaluate

    def evaluate_average() -> Any:
        with average.applied():
            return evaluate()

    return evaluate_average


def check_decay(cfg: CfgNode) -> None:
    """Raises InputError for a SOLVER.EMA_DECAY that cannot work."""
    decay = cfg.SOLVER.EMA_DECAY
    if not 0 <= decay < 1:
        raise InputError(f"SOLVER.EMA_DECAY is {decay}: it must be at least 0, which is off, and below 1, as 0.9997")
    if decay and not is_detr(cfg):
        raise InputError(f"SOLVER.EMA_DECAY {decay} is for a Detr, and not for {cfg.MODEL.META_ARCHITECTURE}: set it 0")
