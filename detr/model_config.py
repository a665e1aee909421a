"""The config that belongs to weights: a released model's, a checkpoint's own, an exported folder's."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from detr import model_zoo
from detr.checkpoint import read_card
from detr.checkpoint.hub import RELEASED, ZOO, local_path, missing_hint, parse_zoo_path, released_file
from detr.checkpoint.options import split_options
from detr.config import EXPORT_DESCRIPTION
from detr.engine.defaults import load_config
from detr.errors import InputError


def config_of(model: str, config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """The config of what a user calls a model, not frozen, with MODEL.WEIGHTS.

    model: a released model's name, with or without ``detr://``, a checkpoint's file or URL, options included, or the
        folder of an exported model; "" where ``opts`` set MODEL.WEIGHTS
    config_file: in the place of the weights' own config
    opts: config keys and values, as on the command line

    Raises InputError for a model that is not there, and for weights without a config.
    """
    opts = list(opts)
    if os.path.isfile(os.path.join(model, EXPORT_DESCRIPTION)):
        return load_config(config_file or os.path.join(model, "config.yaml"), opts)
    name = parse_zoo_path(model).name if model.startswith(ZOO) else model
    if name in RELEASED and not os.path.exists(model):
        return load_config(config_file or model_zoo.config_file(name), ["MODEL.WEIGHTS", ZOO + name, *opts])
    weights = ["MODEL.WEIGHTS", model] if model else []
    if config_file:
        return load_config(config_file, [*weights, *opts])
    path, _ = split_options(model)
    if not path:
        raise InputError("no model is named: give a released model's name, a checkpoint, or a config file")
    if "://" in path:
        return _config_of_file(local_path(path), [*weights, *opts])
    if os.path.isdir(path):
        raise InputError(
            f"the folder {path} holds no exported model ({EXPORT_DESCRIPTION}): name a checkpoint in it, or the "
            "config file that its weights belong to"
        )
    if not os.path.isfile(path):
        raise InputError(f"there is no model {path}{missing_hint(path)}; released are {', '.join(RELEASED)}")
    return _config_of_file(path, [*weights, *opts])


def _config_of_file(path: str, opts: list[str]) -> CfgNode:
    card = read_card(path)
    if card is not None and card.config:
        with tempfile.TemporaryDirectory() as folder:
            saved = Path(folder, "config.yaml")
            saved.write_text(card.config, encoding="utf-8")
            return load_config(str(saved), opts)
    beside = os.path.join(os.path.dirname(path), "config.yaml")
    if os.path.isfile(beside):
        if _is_lazy(beside):
            raise InputError(
                f"{path} was trained with a LazyConfig and says nothing of its config: name the YAML config of the "
                "same model with --config-file, in Python config_file="
            )
        return load_config(beside, opts)
    released = released_file(path)
    if released is not None:
        return load_config(model_zoo.config_file(released.name), opts)
    raise InputError(
        f"{path} says nothing of its config, and no config.yaml lies beside it: name its config file with "
        "--config-file, in Python config_file="
    )


def _is_lazy(path: str) -> bool:
    """Whether a file is a LazyConfig, as Detectron2's script saves it beside its checkpoints."""
    return "_target_:" in Path(path).read_text(encoding="utf-8")
