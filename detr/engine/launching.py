"""Starts a command's work on every process: those of torchrun, those of Detectron2's ``launch``, or this one."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from detectron2.engine import launch as launch_processes
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from detr.engine.interruption import is_lost_connection
from detr.errors import InputError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
FIRST_MACHINE_WAIT = 300.0  # seconds in which the first machine must answer
TIMEOUT = DEFAULT_TIMEOUT  # in which all machines must come, and of every wait for another rank
LAUNCHER_WAIT = 40.0  # seconds in which a launcher ends the other processes after one has failed
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)  # exit statuses after StoppedTraining


def launch(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    *,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
) -> None:
    """Runs ``main(args)`` on every process that was asked for.

    Under torchrun this process is one of them, on the GPU of its LOCAL_RANK where there are GPUs. After an elastic
    restart, ``args.resume`` is set. Otherwise it is Detectron2's ``launch`` on ``args.num_gpus`` GPUs, whose parameters
    the others are. Signals to it reach all of them, and its exit status is theirs.

    Raises InputError where there are fewer GPUs, and for machines that cannot find each other.
    """
    if under_torchrun():
        if args.num_gpus > 1 or num_machines > 1:
            raise InputError(
                "torchrun starts the processes itself: leave out --num-gpus and --num-machines, and give torchrun "
                "--nproc_per_node and --nnodes"
            )
        _run_under_torchrun(main, args)
        return
    if args.num_gpus > max(torch.cuda.device_count(), 1) or args.num_gpus < 0:
        raise InputError(
            f"--num-gpus {args.num_gpus}, but this machine has {torch.cuda.device_count()}: ask for no more (without a "
            "GPU, leave the option out; torchrun --nproc_per_node N starts N processes on the CPU)"
        )
    check_machines(num_machines, machine_rank, dist_url)
    if machine_rank > 0:
        _wait_for_first_machine(dist_url)
    several = args.num_gpus * num_machines > 1
    with _one_end(dist_url) if several else contextlib.nullcontext():
        launch_processes(main, args.num_gpus, num_machines, machine_rank, dist_url, args=(args,), timeout=TIMEOUT)


def under_torchrun() -> bool:
    """Whether torchrun has started this process, as one of several or alone."""
    return all(name in os.environ for name in TORCHRUN)


def num_processes(num_gpus: int) -> int:
    """Of the whole training, which is on one machine where torchrun has not started it; num_gpus: as of --num-gpus."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else num_gpus


def is_first_process() -> bool:
    """Whether what comes before ``launch`` is this process's to do."""
    return not under_torchrun() or os.environ["RANK"] == "0"


def was_restarted() -> bool:
    """Whether torchrun has started all processes again, after one of them had failed."""
    return under_torchrun() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def check_machines(num_machines: int, machine_rank: int, dist_url: str) -> None:
    """Raises InputError for machines that could only wait for each other."""
    if num_machines < 1:
        raise InputError(f"--num-machines is {num_machines}: it must be at least 1")
    if not 0 <= machine_rank < num_machines:
        raise InputError(
            f"--machine-rank is {machine_rank}: it must be one of 0 to {num_machines - 1}, --num-machines - 1"
        )
    if num_machines == 1:
        return
    if dist_url == "auto":
        raise InputError("--dist-url auto is for one machine: name the first one, as in --dist-url tcp://HOST:29500")
    if dist_url.startswith("tcp://"):
        _host_and_port(dist_url)


def _host_and_port(dist_url: str) -> tuple[str, int]:
    url = urlsplit(dist_url)
    with contextlib.suppress(ValueError):  # raised for a port that is no number
        if url.hostname and url.port:
            return url.hostname, url.port
    raise InputError(f"--dist-url {dist_url} needs the first machine and a port, as in tcp://HOST:29500")


def _wait_for_first_machine(dist_url: str) -> None:
    """Until it listens. torch itself would try for half an hour, and end with a traceback."""
    if not dist_url.startswith("tcp://"):
        return
    host, port = _host_and_port(dist_url)
    end = time.monotonic() + FIRST_MACHINE_WAIT
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end or isinstance(error, socket.gaierror):
                raise InputError(
                    f"--dist-url {dist_url}: the machine with --machine-rank 0 does not answer ({error}): start the "
                    f"command there as well, at most {FIRST_MACHINE_WAIT / 60:.0f} minutes later, with this --dist-url"
                ) from None
        time.sleep(1)


def _run_under_torchrun(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    try:
        if torch.cuda.is_available():
            if local_size > torch.cuda.device_count():
                raise InputError(
                    f"torchrun --nproc_per_node {local_size}, but this machine has {torch.cuda.device_count()} GPUs: "
                    "ask for no more, or hide them to use the CPU, with CUDA_VISIBLE_DEVICES="
                )
            torch.cuda.set_device(local_rank)
        if world_size > 1:
            _join(world_size, local_size)
        # The agents of other machines may count no restart.
        if any(comm.all_gather(was_restarted())) and not getattr(args, "eval_only", False):
            args.resume = True
            if rank == 0:
                print(
                    "torchrun has restarted the processes: going on from the last checkpoint, as --resume", flush=True
                )
        main(args)
    except KeyboardInterrupt:
        if rank:
            sys.exit(128 + signal.SIGINT)  # the first one has a line for all
        raise
    except Exception as error:
        if world_size > 1 and not _is_first_failure(error):
            time.sleep(LAUNCHER_WAIT)  # torchrun ends this process, and the first error is the only one
        raise
    if world_size > 1:
        dist.destroy_process_group()


def _join(world_size: int, local_size: int) -> None:
    store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if local_size == world_size:
        # Of one machine, the store outlives a restart, and gloo would find the addresses of processes that are gone.
        store = dist.PrefixStore(f"start_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    comm.create_local_process_group(local_size)
    comm.synchronize()


def _is_first_failure(error: Exception) -> bool:
    """Whether no other rank has failed before. A lost connection is another rank's failure."""
    if is_lost_connection(error):
        return False
    key = f"detr/failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    address, wait = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timedelta(seconds=10)
    try:
        store = dist.TCPStore(*address, is_master=False, timeout=wait)
        return bool(store.add(key, 1) == 1)
    except dist.DistError:
        return True  # the store is gone, and with it those who could have more to say


@contextlib.contextmanager
def _one_end(dist_url: str) -> Iterator[None]:
    """Around Detectron2's ``launch``: passes signals on to its processes, and ends as they did."""
    received: list[int] = []

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        received.append(signum)
        if not (processes := multiprocessing.active_children()):
            _end_by(signum)
        for process in processes:
            if process.pid is not None:
                os.kill(process.pid, signum)

    earlier = {signum: signal.signal(signum, pass_on) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except ProcessExitedException as ended:
        if ended.exit_code in STOPPED:
            sys.exit(ended.exit_code)
        if received:
            _end_by(received[0])
        if ended.signal_name is None:
            raise
        print(
            f"error: process {ended.error_index} of {dist_url} was killed by {ended.signal_name} (where nobody did it, "
            "the machine had no memory left); the same command with --resume goes on from the last checkpoint",
            file=sys.stderr,
        )
        sys.exit(1)
    except ProcessRaisedException as error:
        if received:
            _end_by(received[0])
        if "torch.distributed.Dist" in str(error) and "rendezvous" in str(error):
            raise InputError(
                f"not all machines have come to {dist_url}: start the command on each of them, with the same "
                "--dist-url and --num-machines, and its own --machine-rank"
            ) from None
        raise
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
    if received:
        _end_by(received[0])


def _end_by(signum: int) -> NoReturn:
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + signum)
