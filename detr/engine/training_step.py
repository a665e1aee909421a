"""What computes a training step: in which precision, in how many parts, on a model that several processes share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, create_ddp_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from detr.engine.health import find_detr
from detr.errors import InputError
from detr.modeling.accumulation import part_of_batch
from detr.modeling.criterion import SetCriterion

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainingStep(SimpleTrainer):
    """Detectron2's SimpleTrainer and AMPTrainer in one, which can also compute a batch in parts."""

    def __init__(
        self,
        model: torch.nn.Module,
        data_loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        dtype: torch.dtype | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        parts: int = 1,
        **options: Any,
    ) -> None:
        """
        dtype: of products and convolutions, mixed precision; None for that of the weights
        grad_scaler: for float16, whose gradients would vanish
        parts: so many equal parts of each batch, one after the other. The optimizer sees the gradients of the whole
            batch: of a ``Detr`` with its ``SetCriterion`` exactly, else the mean of the parts'
        options: of SimpleTrainer. Gradients are set to zero before the forward pass, which saves their memory
        """
        super().__init__(model, data_loader, optimizer, **{"zero_grad_before_forward": True, **options})
        self.dtype, self.grad_scaler, self.parts = dtype, grad_scaler, parts

    def run_step(self) -> None:
        """Raises InputError for a batch that cannot be computed in so many parts."""
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses = self._backward(data) if self.parts == 1 else self._backward_in_parts(data)
        self.after_backward()
        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, losses, data_time, iter=self.iter)
        else:
            self._write_metrics(losses, data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
            return
        # Before the step, since gradients are clipped as it begins. A fused optimizer would unscale them after that.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _backward(self, data: Any, share: int = 1) -> dict[str, Tensor]:
        """Adds the gradients of the losses / share, and returns these losses."""
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, self.dtype) if self.dtype is not None else contextlib.nullcontext():
            losses = self.model(data)
            if isinstance(losses, Tensor):
                losses = {"total_loss": losses}
            if share > 1:
                losses = {name: loss / share for name, loss in losses.items()}
            total = sum(losses.values())
        (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _backward_in_parts(self, data: Any) -> dict[str, Tensor]:
        size = len(data) if isinstance(data, list) else 0
        if not size or size % self.parts:
            what = f"a batch of {size} images" if size else f"what the loader gives, a {type(data).__name__},"
            raise InputError(
                f"{what} cannot be computed in SOLVER.ACCUMULATION_STEPS {self.parts} equal parts: a loader of your "
                "own must give lists of so many images that they divide"
            )
        parts = [data[i : i + size // self.parts] for i in range(0, size, size // self.parts)]
        sums: dict[str, Tensor] = {}
        with self._as_whole_batch(parts):
            for number, part in enumerate(parts, start=1):
                # Ranks share their gradients once, with the last part's.
                shares = number == self.parts or not isinstance(self.model, DistributedDataParallel)
                with contextlib.nullcontext() if shares else self.model.no_sync():
                    for name, loss in self._backward(part, self.parts).items():
                        sums[name] = sums[name] + loss if name in sums else loss
        return sums

    def _as_whole_batch(self, parts: Sequence[Any]) -> contextlib.AbstractContextManager[None]:
        detr = find_detr(self.model)
        if detr is None or not isinstance(detr.criterion, SetCriterion):
            return contextlib.nullcontext()
        return part_of_batch(detr, parts)

    def state_dict(self) -> dict[str, Any]:
        """As Detectron2's trainers have it, with ``grad_scaler`` where there is one."""
        state: dict[str, Any] = super().state_dict()
        return state if self.grad_scaler is None else {**state, "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def build_step(cfg: CfgNode, model: torch.nn.Module, loader: Any, optimizer: torch.optim.Optimizer) -> TrainingStep:
    """By SOLVER.AMP and SOLVER.ACCUMULATION_STEPS; several processes share the gradients."""
    cuda = next(model.parameters()).is_cuda
    model = create_ddp_model(model, broadcast_buffers=False, **({} if cuda else {"device_ids": None}))
    dtype = DTYPES[cfg.SOLVER.AMP.DTYPE] if cfg.SOLVER.AMP.ENABLED else None
    scaler = torch.amp.GradScaler("cuda") if dtype == torch.float16 else None
    parts = cfg.SOLVER.ACCUMULATION_STEPS
    return TrainingStep(model, loader, optimizer, dtype=dtype, grad_scaler=scaler, parts=parts)


def check_precision(cfg: CfgNode) -> None:
    """Raises InputError for an unknown SOLVER.AMP.DTYPE, and for one that the device cannot train in."""
    dtype = cfg.SOLVER.AMP.DTYPE
    if dtype not in DTYPES:
        raise InputError(f"SOLVER.AMP.DTYPE is {dtype!r}: it must be one of {', '.join(DTYPES)}")
    if cfg.SOLVER.AMP.ENABLED and dtype == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise InputError(
            "SOLVER.AMP.ENABLED with SOLVER.AMP.DTYPE float16 needs a GPU: set SOLVER.AMP.DTYPE bfloat16, or "
            "SOLVER.AMP.ENABLED False"
        )
