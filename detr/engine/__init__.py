"""Training and evaluation on Detectron2's DefaultTrainer."""

from detr.engine.command import main
from detr.engine.defaults import parse_and_launch, setup
from detr.engine.trainer import Trainer

__all__ = ["Trainer", "main", "parse_and_launch", "setup"]
