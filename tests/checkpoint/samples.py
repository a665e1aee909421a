"""Checkpoints that several tests use: a small original, the same as the wrapper has it, and a malicious one."""

import os

import torch

from detr.checkpoint.formats import to_detectron2
from tests.parity.oracle import build_original, original_checkpoint


def small_original(**options):
    """The state dict of a small box DETR on a ResNet-50, as the authors name it."""
    sizes = {"hidden_dim": 64, "dim_feedforward": 64, "enc_layers": 1, "dec_layers": 1, "num_queries": 10}
    model, _, _ = build_original("detr_R_50", **{**sizes, **options})
    for buffer in model.buffers():
        buffer.add_(0.1 * torch.rand(buffer.shape))
    return original_checkpoint(model)["model"]


def as_wrapper(state):
    """An original as the authors' wrapper has it: Detectron2's backbone inside, all below `detr`, twice with masks."""
    ours = to_detectron2(state).state
    prefix = "detr.detr." if any(key.startswith("mask_head.") for key in ours) else "detr."
    renamed = {}
    for key, value in ours.items():
        if key.startswith("mask_head.attention."):
            renamed[key.replace("mask_head.attention.", "detr.bbox_attention.")] = value
        elif key.startswith("mask_head."):
            renamed[f"detr.{key}"] = value
        else:
            renamed[f"{prefix}backbone.0.{key}" if key.startswith("backbone.") else f"{prefix}{key}"] = value
    return renamed | {"criterion.empty_weight": torch.ones(len(ours["class_embed.bias"]))}


class Mkdir:
    """Unpickled without restriction, it creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)
