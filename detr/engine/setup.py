"""From the command line to a checked, frozen config."""

import argparse
import difflib
import logging
import os
import re
import shlex
from collections.abc import Callable
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from detr.config import add_detr_config
from detr.errors import InputError, exit_with_one_line

logger = logging.getLogger(__name__)


def parse_and_launch(main: Callable[[argparse.Namespace], Any], description: str) -> None:
    """Detectron2's command line, and ``main(args)`` on every GPU that it asks for.

    Bad input ends the script with one line and status 2.
    """
    args = default_argument_parser(description).parse_args()
    with exit_with_one_line():
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of ``args.config_file`` and ``args.opts``; starts Detectron2's logging.

    Raises InputError for a config or a weights file that is missing, an unknown key or a wrong value.
    """
    cfg = load_config(args.config_file, args.opts)
    use_available_device(cfg)
    check_weights(cfg.MODEL.WEIGHTS)
    if not (args.eval_only or args.resume):
        check_output_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="detr")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)
    return cfg


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """Defaults, then the file with its bases, then ``KEY VALUE`` pairs; not frozen.

    Of SOLVER.MAX_ITER and SOLVER.MAX_EPOCHS the one said last holds: in the pairs, else in the file,
    else in its base. Raises InputError as ``setup`` does.
    """
    cfg = get_cfg()
    add_detr_config(cfg)
    if config_file:
        if not PathManager.isfile(config_file):
            raise InputError(f"the config file {config_file} does not exist: see configs/ for those that do")
        _merge(cfg, config_file, lambda: cfg.merge_from_file(config_file))
    if len(opts) % 2:
        raise InputError(
            f"the options at the end must be KEY VALUE pairs, but these are {len(opts)}: {shlex.join(opts)}"
        )
    _merge(cfg, "the command line", lambda: cfg.merge_from_list(opts))
    if _last_word(config_file, opts) == "MAX_ITER":
        cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.DROP_EPOCHS = 0, ()
    return cfg


def _merge(cfg: CfgNode, where: str, merge: Any) -> None:
    try:
        merge()
    except (KeyError, ValueError, AssertionError, AttributeError, OSError, yaml.YAMLError) as error:
        # yacs tells a key that it does not know by a KeyError or an assertion, as the source has it.
        text = " ".join(str(error.args[0] if isinstance(error, (KeyError, AssertionError)) else error).split())
        unknown = re.match(r"Non-existent (?:config )?key: (\S+)", text)
        if not unknown:
            raise InputError(f"{where} has a key or value that the config cannot take: {text}") from error
        near = difflib.get_close_matches(unknown[1], _keys(cfg), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{where} has the unknown config key {unknown[1]}{hint}") from error


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in cfg.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}"]
    return keys


def _last_word(config_file: str, opts: list[str]) -> str | None:
    """Which of MAX_EPOCHS and MAX_ITER was said last; MAX_EPOCHS where one level says both."""
    said: Any = {key.removeprefix("SOLVER.") for key in opts[::2] if key.startswith("SOLVER.")}
    while True:
        for key in ("MAX_EPOCHS", "MAX_ITER"):
            if key in said:
                return key
        if not config_file:
            return None
        with PathManager.open(config_file) as file:
            content = yaml.unsafe_load(file) or {}
        said = content.get("SOLVER") or {}
        base = content.get("_BASE_", "")
        config_file = base if not base or os.path.isabs(base) else os.path.join(os.path.dirname(config_file), base)


def use_available_device(cfg: CfgNode) -> None:
    """Puts the CPU in the place of a CUDA device that is not there, and says so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        print("MODEL.DEVICE asks for CUDA, which is not available here: going on with the CPU")


def check_output_folder(folder: str) -> None:
    """Raises InputError where a new training would write over the checkpoints of an earlier one."""
    if PathManager.exists(os.path.join(folder, "last_checkpoint")):
        raise InputError(
            f"OUTPUT_DIR {folder} holds the checkpoints of an earlier training: go on with --resume, or name "
            "another folder, as in OUTPUT_DIR output/second"
        )


def _without_traceback(record: logging.LogRecord) -> bool:
    """For Detectron2's training loop, which logs every error with its traceback: not those told in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (InputError, FloatingPointError))


def check_weights(weights: str) -> None:
    """Raises InputError for a local weights file that is missing."""
    if weights and "://" not in weights and not PathManager.exists(weights):
        raise InputError(
            f'the weights file {weights} does not exist: check MODEL.WEIGHTS; MODEL.WEIGHTS "" starts from random '
            "weights"
        )
