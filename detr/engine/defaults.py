"""From the command line to a checked, frozen config."""

import argparse
import difflib
import logging
import os
import re
import shlex
import time
from collections.abc import Callable
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from detr.checkpoint.files import weights_in_folder
from detr.checkpoint.hub import TORCHVISION, ZOO, missing_hint, parse_zoo_path, torchvision_url
from detr.checkpoint.options import split_options
from detr.config import EXPORT_DESCRIPTION, add_detr_config, check_names
from detr.config_node import settle_schedule
from detr.engine.evaluation import is_detr
from detr.errors import InputError, exit_with_one_line

logger = logging.getLogger(__name__)


def parse_and_launch(main: Callable[[argparse.Namespace], Any], description: str) -> None:
    """Detectron2's command line, and ``main(args)`` on every GPU that it asks for.

    Bad input ends the script with one line and status 2.
    """
    args = default_argument_parser(description).parse_args()
    with exit_with_one_line():
        if args.num_gpus > max(torch.cuda.device_count(), 1):
            raise InputError(
                f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}: ask for no more "
                "(without a GPU, leave the option out)"
            )
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of ``args.config_file`` and ``args.opts``, checked; starts Detectron2's logging.

    Raises InputError for a config or a weights file that is missing, an unknown key or a wrong value.
    """
    cfg = load_config(args.config_file, args.opts)
    resumes = bool(args.resume) and PathManager.exists(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"))
    check_config(cfg, training=not args.eval_only, resumes=resumes)
    if not (args.eval_only or args.resume):
        check_output_folder(cfg.OUTPUT_DIR)
    cfg.freeze()
    # Detectron2 writes config.yaml now, where it would replace that of a training which is only evaluated, or cannot
    # be resumed like this.
    trained_with = _read(cfg.OUTPUT_DIR, "config.yaml") if args.eval_only or resumes else None
    default_setup(cfg, args)
    if trained_with is not None:
        _write_config(cfg.OUTPUT_DIR, trained_with)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="detr")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_without_traceback)
    if args.resume and not resumes:
        logger.warning("--resume: %s holds no checkpoint, so this starts from MODEL.WEIGHTS", cfg.OUTPUT_DIR)
    return cfg


def check_config(cfg: CfgNode, *, training: bool, resumes: bool = False) -> None:
    """Everything about a config that can be known before data is read, in one call; fits it to this machine, in place.

    training: whether the model is trained, else evaluated
    resumes: from a checkpoint, so that MODEL.WEIGHTS is not read

    Raises InputError.
    """
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


def save_config(cfg: CfgNode) -> None:
    """Writes OUTPUT_DIR/config.yaml, which ``setup`` left as it was where a training is resumed."""
    _write_config(cfg.OUTPUT_DIR, str(cfg.dump()))


def _write_config(folder: str, text: str) -> None:
    if comm.is_main_process():
        with PathManager.open(os.path.join(folder, "config.yaml"), "w") as file:
            file.write(text)


def _read(folder: str, name: str) -> str | None:
    path = os.path.join(folder, name)
    if not PathManager.isfile(path):
        return None
    with PathManager.open(path) as file:
        return str(file.read())


def load_config(config_file: str, opts: list[str]) -> CfgNode:
    """Defaults, then the file with its bases, then ``KEY VALUE`` pairs; not frozen.

    Where a schedule is given in epochs and in iterations (SOLVER.MAX_EPOCHS and MAX_ITER, DROP_EPOCHS and
    STEPS, ...), the later setting wins. Raises InputError as ``setup`` does.
    """
    cfg = get_cfg()
    add_detr_config(cfg)
    if config_file:
        if not PathManager.isfile(config_file):
            raise InputError(f"the config file {config_file} does not exist: see configs/ for those that do")
        _merge(cfg, config_file, lambda: cfg.merge_from_file(config_file))
        folder = os.path.dirname(config_file) or "."
        if cfg.MODEL.DETR.EXPORTED and os.path.isfile(os.path.join(folder, EXPORT_DESCRIPTION)):
            cfg.MODEL.DETR.EXPORTED = folder  # wherever an exported model was moved to, its config lies beside it
    flags = [opt for opt in opts if opt.startswith("--")]
    if flags:
        raise InputError(f"{flags[0]} stands among the KEY VALUE pairs: options that start with -- go before them")
    if len(opts) % 2:
        raise InputError(
            f"the options at the end must be KEY VALUE pairs, but these are {len(opts)}: {shlex.join(opts)}"
        )
    _merge(cfg, "the command line", lambda: cfg.merge_from_list(opts))
    return settle_schedule(cfg)


def _merge(cfg: CfgNode, where: str, merge: Any) -> None:
    try:
        merge()
    except (KeyError, ValueError, AssertionError, AttributeError, OSError, yaml.YAMLError) as error:
        # for an unknown key yacs raises a KeyError or an assertion, depending on where the key stands.
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


def fit_machine(cfg: CfgNode, training: bool = False) -> None:
    """Takes the CPU for a CUDA device that is not there, and no more workers than cores; both are printed.

    Raises InputError for a training that asks for CUDA where there is none: it could take weeks.
    """
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if training:
            raise InputError(
                f"MODEL.DEVICE is {cfg.MODEL.DEVICE}, but CUDA is not available here. {_estimate_on_cpu(cfg)}"
                "Train on a machine with a GPU, or set MODEL.DEVICE cpu to train here"
            )
        cfg.MODEL.DEVICE = "cpu"
        print("MODEL.DEVICE asks for CUDA, which is not available here: going on with the CPU")
    if cfg.SOLVER.AMP.ENABLED and not torch.cuda.is_available():
        cfg.SOLVER.AMP.ENABLED = False
        print("SOLVER.AMP.ENABLED needs CUDA, which is not available here: going on in single precision")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < cfg.DATALOADER.NUM_WORKERS:
        print(f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS} on {cores} cores: going on with {cores}")
        cfg.DATALOADER.NUM_WORKERS = cores


def _estimate_on_cpu(cfg: CfgNode) -> str:
    """How long a training step would take here, by the model's multiplications and this CPU's speed, in a sentence."""
    if not is_detr(cfg):
        return ""
    side = sorted(cfg.INPUT.MIN_SIZE_TRAIN)[len(cfg.INPUT.MIN_SIZE_TRAIN) // 2]
    size = min(side, cfg.INPUT.MAX_SIZE_TRAIN), min(side * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)  # most photos are 4 : 3
    from detr.analysis import analyze  # only here: `import detr` needs none of it

    try:
        macs = analyze(cfg, size=size, objects=1).training_macs
    except InputError:
        return ""
    seconds = macs / _macs_per_second() * cfg.SOLVER.IMS_PER_BATCH
    return (
        f"A step of {cfg.SOLVER.IMS_PER_BATCH} images of about {size[0]} x {size[1]} pixels would take about "
        f"{seconds:.1f} s on this CPU, 10,000 of them {seconds * 1e4 / 86400:.1f} days. "
    )


def _macs_per_second() -> float:
    """What this CPU reaches in a convolution like those of res3, in single precision."""
    x, weight = torch.randn(1, 128, 100, 128), torch.randn(128, 128, 3, 3)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        torch.nn.functional.conv2d(x, weight, padding=1)
        times.append(time.perf_counter() - start)
    return 100 * 128 * weight.numel() / sorted(times)[2]


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
    """Raises InputError where a new training would write over the checkpoints of an earlier one."""
    if PathManager.exists(os.path.join(folder, "last_checkpoint")):
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
