"""From the command line to a checked, frozen config."""

import argparse
import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from detr.checkpoint.files import weights_in_folder
from detr.checkpoint.hub import TORCHVISION, ZOO, missing_hint, parse_zoo_path, torchvision_url
from detr.checkpoint.options import split_options
from detr.checkpoint.run_folder import holds_training
from detr.config import EXPORT_DESCRIPTION, add_detr_config
from detr.config_checks import check_names
from detr.config_node import settle_schedule
from detr.config_values import check_values
from detr.engine import terminal
from detr.engine.data_checks import on_main_process
from detr.engine.disk_errors import expect_disk_errors
from detr.engine.folder_lock import check_unlocked, lock_folder
from detr.engine.launching import launch
from detr.engine.machine import fit_machine
from detr.engine.options import merge_file, merge_options
from detr.engine.registration import register_datasets
from detr.engine.written_configs import keep_config, save_config
from detr.errors import InputError, exit_with_one_line
from detr.random_state import use_deterministic_operations
from detr.whole_files import name_disk_errors

logger = logging.getLogger(__name__)


def parse_and_launch(main: Callable[[argparse.Namespace], Any], description: str) -> None:
    """Detectron2's command line with ``--verbose``, and ``main(args)`` on every process that it or torchrun asks for.

    Bad input ends the script with one line and status 2.
    """
    parser = default_argument_parser(description)
    parser.add_argument("--verbose", action="store_true", help="Detectron2's whole log on the terminal too")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="the same numbers in every run on the same machine, which may be slower; SEED is 0 where it is not set",
    )
    args = parser.parse_args()
    resuming = "" if args.eval_only else "the same command with --resume goes on from the last checkpoint"
    with exit_with_one_line(resuming):
        launch(main, args, num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url)


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of ``args.config_file`` and ``args.opts``, checked; starts Detectron2's logging.

    With ``args.deterministic``, two runs give the same numbers.
    The log goes to OUTPUT_DIR/log.txt, and to the terminal where ``args.verbose`` is there and true; otherwise the
    terminal has our own few lines. The data sets in DATASETS.REGISTER are registered. Raises InputError for a config or
    a weights file that is missing, an unknown key or a wrong value.
    """
    cfg = load_config(args.config_file, args.opts)
    if getattr(args, "deterministic", False):
        use_deterministic_operations()
        cfg.SEED, cfg.CUDNN_BENCHMARK = max(cfg.SEED, 0), False
    resumes = bool(args.resume) and holds_training(cfg.OUTPUT_DIR)
    check_config(cfg, training=not args.eval_only, resumes=resumes)
    if not (args.eval_only or args.resume):
        on_main_process(partial(check_output_folder, cfg.OUTPUT_DIR))  # others may come when it is locked
    if not args.eval_only:
        on_main_process(partial(lock_folder, cfg.OUTPUT_DIR))
    register_datasets(cfg)
    cfg.freeze()
    verbose = getattr(args, "verbose", False)
    if verbose:
        terminal.end_quiet()
    kept = args.eval_only or resumes
    with (
        name_disk_errors(cfg.OUTPUT_DIR),
        contextlib.nullcontext() if verbose else terminal.quiet_logging(),
        keep_config(cfg.OUTPUT_DIR, kept),
        expect_disk_errors(),
    ):
        default_setup(cfg, args)  # writes config.yaml
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="detr")
    if args.eval_only:
        save_config(cfg, "eval")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)
    terminal.show_section("Config", [args.config_file or "Detectron2's defaults"])
    terminal.show_section("Output", [f"{cfg.OUTPUT_DIR}, with the whole log in log.txt"])
    if args.resume and not resumes:
        logger.warning("--resume: %s holds no checkpoint, so this starts from MODEL.WEIGHTS", cfg.OUTPUT_DIR)
    return cfg


def check_config(cfg: CfgNode, *, training: bool, resumes: bool = False) -> None:
    """Everything about a config that can be known before data is read, in one call; fits it to this machine, in place.

    training: whether the model is trained, else evaluated
    resumes: from a checkpoint, so that MODEL.WEIGHTS is not read

    Raises InputError.
    """
    check_values(cfg)
    check_names(cfg)
    exported = bool(cfg.MODEL.DETR.EXPORTED)
    if exported and training:
        raise InputError("an exported model cannot be trained: add --eval-only, or train the model that it comes from")
    if training:
        start_from_frozen_weights(cfg)
    if not resumes:
        check_weights(cfg.MODEL.WEIGHTS, needed=not training and not exported)
    fit_machine(cfg, training)


def start_from_frozen_weights(cfg: CfgNode) -> None:
    """Lets a training of masks start from the box DETR in MODEL.DETR.FROZEN_WEIGHTS, the wrapper's key.

    Weights are loaded once: those in MODEL.WEIGHTS would overwrite the frozen ones.
    """
    frozen = cfg.MODEL.DETR.FROZEN_WEIGHTS
    if frozen and not cfg.MODEL.MASK_ON:
        print("MODEL.DETR.FROZEN_WEIGHTS is for masks, and MODEL.MASK_ON is False: going on without it")
    elif frozen:
        check_weights(frozen, key="MODEL.DETR.FROZEN_WEIGHTS")
        print(f"MODEL.DETR.FROZEN_WEIGHTS: starting from {frozen}, with the box model frozen, not from MODEL.WEIGHTS")
        cfg.MODEL.WEIGHTS = frozen


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """Defaults, then the file with its bases, then ``KEY VALUE`` or ``KEY=VALUE``; not frozen.

    Where a schedule is given in epochs and in iterations (SOLVER.MAX_EPOCHS and MAX_ITER, DROP_EPOCHS and
    STEPS, ...), the later setting wins. Raises InputError as ``setup`` does.
    """
    cfg = get_cfg()
    add_detr_config(cfg)
    if config_file:
        merge_file(cfg, config_file)
        folder = os.path.dirname(config_file) or "."
        if cfg.MODEL.DETR.EXPORTED and os.path.isfile(os.path.join(folder, EXPORT_DESCRIPTION)):
            cfg.MODEL.DETR.EXPORTED = folder  # wherever an exported model was moved to, its config lies beside it
    merge_options(cfg, opts)
    return settle_schedule(cfg)


def check_whole(reinitialized: list[str], would: str = "--eval-only would evaluate") -> None:
    """Raises InputError where an evaluation, or another action that ``would`` names, would use random weights.

    reinitialized: the checkpointer's lines about parts without weights
    """
    if reinitialized:
        raise InputError(
            f"{would} random weights, {'; '.join(reinitialized)}: name weights of a whole model in MODEL.WEIGHTS, or "
            "the config that they belong to"
        )


def check_output_folder(folder: str) -> None:
    """Raises InputError where a new training would write over the files of another one, or cannot write."""
    check_unlocked(folder)
    if "://" not in folder:
        there = os.path.abspath(folder)  # or what is there of the path to it
        while not os.path.exists(there):
            there = os.path.dirname(there)
        try:
            tempfile.TemporaryDirectory(dir=there).cleanup()
        except OSError as error:
            raise InputError(f"OUTPUT_DIR {folder} cannot be written ({error.strerror}): name another one") from error
    if holds_training(folder):
        raise InputError(
            f"OUTPUT_DIR {folder} holds the checkpoints of an earlier training: go on with --resume, or name "
            "another folder, as in OUTPUT_DIR output/second"
        )


def _without_traceback(record: logging.LogRecord) -> bool:
    """Detectron2's training loop logs every error with its traceback; not those that are reported in one line."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (InputError, FloatingPointError))


def check_weights(weights: str, needed: bool = False, key: str = "MODEL.WEIGHTS") -> None:
    """Raises InputError for weights that are missing, and for none where they are ``needed``."""
    if not weights and needed:
        raise InputError("--eval-only needs trained weights, but MODEL.WEIGHTS is empty: name a checkpoint there")
    weights, _ = split_options(weights)
    if weights.startswith(TORCHVISION):
        torchvision_url(weights)
    elif weights.startswith(ZOO):
        parse_zoo_path(weights)
    elif os.path.isdir(weights):
        weights_in_folder(weights)
    elif weights and "://" not in weights and not PathManager.isfile(weights):
        raise InputError(
            f"{key}: there is no file or folder {weights}{missing_hint(weights)}; "
            'MODEL.WEIGHTS "" starts from random weights'
        )
