"""What computes a training step: Detectron2's loop body, around a model that several processes share."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, SimpleTrainer, create_ddp_model


def build_step(cfg: CfgNode, model: torch.nn.Module, loader: Any, optimizer: torch.optim.Optimizer) -> SimpleTrainer:
    """Detectron2's SimpleTrainer, or AMPTrainer by SOLVER.AMP; on several processes, they share the gradients."""
    options = {} if next(model.parameters()).is_cuda else {"device_ids": None}
    model = create_ddp_model(model, broadcast_buffers=False, **options)
    step = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(model, loader, optimizer)
    # Saves memory: the gradients of the last step are freed before the forward pass.
    step.zero_grad_before_forward = True
    return step
